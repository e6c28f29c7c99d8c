//! Tests of changes that the log cannot take.

use weft_model::{
    Command, ServiceId,
    spec::Role::{Manager, Worker},
};

use super::fixture::{cluster, set_label, stop};
use crate::{
    fixture::service_spec,
    swarm::{ProposeError, manager::propose::MAX_ENTRY_BYTES},
};

#[tokio::test]
async fn a_change_that_is_too_large_for_the_log_is_refused_on_each_manager_and_not_written() {
    let [n1, n2] = cluster([Manager; 2]).await;
    for daemon in [&n1, &n2] {
        let mut large = service_spec("large", 0, &[]);
        large.task.container.env = vec![format!("LARGE={}", "x".repeat(MAX_ENTRY_BYTES))];
        let command = Command::CreateService { id: ServiceId::from_random(1), spec: Box::new(large) };
        let refused = daemon.manager().propose(command).await.expect_err("it could not be sent");
        assert!(matches!(refused, ProposeError::Unavailable { .. }), "{refused}");
        assert!(refused.to_string().contains("16777216 at most: make it smaller"), "{refused}");
    }
    set_label(&n2, "small").await.expect("another change is made");
    assert!(n2.manager().state().borrow().services.is_empty());
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_change_is_refused_at_once_when_the_log_has_panicked() {
    let [n1] = cluster([Manager]).await;
    let manager = n1.manager();
    manager.panic_log().await;
    let refused = manager.rotate_token(Worker).await.expect_err("nothing can be written");
    assert!(matches!(refused, ProposeError::Unavailable { .. }), "{refused}");
    stop([n1]).await;
}
