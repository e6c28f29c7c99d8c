//! Secrets and configs: their names and data, and the services that use them.

use weft_model::{
    Command, DependencyId,
    spec::{DependencyKind, DependencySpec, FileData, FileReference},
};

use super::{check_refused, refusal};
use crate::fixture::{TestCluster, dependency_spec, file_reference, service_spec};

const SECRET: DependencyKind = DependencyKind::Secret;
const CONFIG: DependencyKind = DependencyKind::Config;

/// A service `name` with these secrets.
fn with_secrets(name: &str, secrets: Vec<FileReference>) -> weft_model::spec::ServiceSpec {
    let mut spec = service_spec(name, 1, &[]);
    spec.task.container.secrets = secrets;
    spec
}

#[test]
fn a_name_is_unique_among_those_of_its_kind() {
    let mut cluster = TestCluster::new();
    cluster.dependency(dependency_spec(SECRET, "key", "a")).expect("a secret");
    cluster.dependency(dependency_spec(CONFIG, "key", "a")).expect("a config of the same name");
    assert_eq!(refusal(cluster.dependency(dependency_spec(SECRET, "KEY", "b"))), "secret KEY already exists");
    assert_eq!(refusal(cluster.dependency(dependency_spec(CONFIG, "key", "b"))), "config key already exists");
}

#[test]
fn data_has_swarms_limits() {
    for (kind, max, text) in [
        (SECRET, 512_000, "secret data must be larger than 0 and less than 512000 bytes"),
        (CONFIG, 1_024_000, "config data must be larger than 0 and less than 1024000 bytes"),
    ] {
        let mut cluster = TestCluster::new();
        let of = |len: usize| dependency_spec(kind, "x", &"x".repeat(len));
        assert_eq!(refusal(cluster.dependency(of(0))), text);
        assert_eq!(refusal(cluster.dependency(of(max))), text);
        cluster.dependency(of(max - 1)).expect("one octet less than the limit");
    }
}

#[test]
fn templates_must_be_known_and_an_error_does_not_show_the_text_around_them() {
    let mut cluster = TestCluster::new();
    let spec = |data: &[u8]| DependencySpec {
        templated: true,
        data: FileData(data.to_vec()).into(),
        ..dependency_spec(SECRET, "key", "")
    };
    let error = refusal(cluster.dependency(spec(b"hunter2 {{.Task.Age}}")));
    assert!(error.starts_with("secret key has a template that is not known: use {{.Node.ID}}, "), "{error}");
    assert!(!error.contains("hunter2") && !error.contains("Age"), "{error}");
    let error = refusal(cluster.dependency(spec(b"\xff{{.Task.Slot}}")));
    assert!(error.contains("no text in UTF-8"), "{error}");
    cluster.dependency(spec(b"{{.Task.Slot}}")).expect("a known template");
    let plain = DependencySpec { templated: false, ..spec(b"\xff{{.Task.Age}}") };
    cluster.dependency(DependencySpec { kind: CONFIG, ..plain }).expect("no template");
}

#[test]
fn only_labels_change() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_secret("key", "a").id;
    let version = cluster.state.dependencies[&id].meta.version;
    let labels = [("a".to_owned(), "b".to_owned())].into();
    let update = |version| Command::UpdateDependency { id: id.clone(), version, labels: Clone::clone(&labels) };
    cluster.ok(update(version));
    let found = &cluster.state.dependencies[&id];
    assert_eq!((&found.spec.labels, found.meta.version), (&labels, cluster.state.index));
    let text = format!(
        "update out of sequence: secret {id} is at version {}, the request was for {version}; read it again and retry",
        cluster.state.index
    );
    check_refused(&mut cluster, update(version), &text);
}

#[test]
fn what_a_service_uses_is_not_removed() {
    let mut cluster = TestCluster::new();
    let (first, second) = (cluster.add_secret("first", "a"), cluster.add_secret("second", "b"));
    let remove = |file: &FileReference| Command::RemoveDependency { id: file.id.clone() };
    let web = cluster.add_service(with_secrets("web", vec![first.clone()]));
    check_refused(&mut cluster, remove(&first), "secret 'first' is in use by the following service: web");
    let api = cluster.add_service(with_secrets("api", vec![first.clone()]));
    let error = refusal(cluster.apply(remove(&first)));
    assert!(error.starts_with("secret 'first' is in use by the following services: "), "{error}");
    assert!(error.contains("web") && error.contains("api") && error.contains(", "), "{error}");

    // Another spec, and the removal of a service, give it free.
    let before = cluster.state.services[&web].task_version;
    cluster.update_service(&web, |spec| spec.task.container.secrets = vec![second.clone()]);
    assert!(cluster.state.services[&web].task_version > before, "the tasks are replaced");
    cluster.ok(Command::RemoveService { id: api });
    cluster.ok(remove(&first));
    check_refused(&mut cluster, remove(&first), &format!("no such secret: {}", first.id));

    // There is nothing to go back to then.
    let version = cluster.state.services[&web].meta.version;
    let rollback = Command::RollbackService { id: web, version, message: String::new(), automatic: false };
    check_refused(&mut cluster, rollback, "secret not found: first");
}

#[test]
fn a_service_refers_to_what_exists_by_id_and_name() {
    let mut cluster = TestCluster::new();
    let key = cluster.add_secret("key", "a");
    let renamed = FileReference { name: "other".to_owned(), ..key.clone() };
    let missing = file_reference(999, "missing");
    let mut check = |secrets: &[&FileReference], configs: &[&FileReference], text: &str| {
        let mut spec = with_secrets("web", secrets.iter().copied().cloned().collect());
        spec.task.container.configs = configs.iter().copied().cloned().collect();
        assert_eq!(refusal(cluster.service(spec)), text);
    };
    check(&[&renamed], &[], "secret not found: other");
    check(&[&renamed, &key, &missing], &[], "secrets not found: other, missing");
    check(&[], &[&key], "config not found: key");
    cluster.add_service(with_secrets("web", vec![key]));
    assert_eq!(cluster.state.dependencies.keys().next().map(DependencyId::as_str).map(str::len), Some(25));
}

#[test]
fn files_have_paths_of_their_own() {
    let mut cluster = TestCluster::new();
    let (first, second) = (cluster.add_secret("first", "a"), cluster.add_secret("second", "b"));
    let conf = cluster.dependency(dependency_spec(CONFIG, "conf", "c")).expect("a config");
    let conf = FileReference { id: conf, ..file_reference(0, "conf") };
    let at = |file: &FileReference, target: &str| FileReference { target: target.to_owned(), ..file.clone() };
    let same = "secret references 'first' and 'second' have a conflicting target: 'first'";
    assert_eq!(refusal(cluster.service(with_secrets("web", vec![first.clone(), at(&second, "first")]))), same);
    let mut spec = with_secrets("web", vec![first.clone()]);
    spec.task.container.configs = vec![at(&conf, "/run/secrets/first")];
    let error = refusal(cluster.service(spec));
    assert_eq!(error, "config references 'first' and 'conf' have a conflicting target: '/run/secrets/first'");
    let error = refusal(cluster.service(with_secrets("web", vec![at(&first, "../shadow")])));
    assert!(error.contains("invalid target file name provided: \"../shadow\" of secret first"), "{error}");
    let error = refusal(cluster.service(with_secrets("web", vec![FileReference { mode: 0o4755, ..first.clone() }])));
    assert_eq!(error, "mode 0o4755 of secret first is more than permissions: use at most 0o777");
    cluster.add_service(with_secrets("web", vec![at(&first, "a"), at(&first, "b"), second]));
}
