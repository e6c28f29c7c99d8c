//! What reads the texts that users send: one function for each target in `fuzz/`. See
//! [`crate::fuzzing`].

use std::collections::BTreeMap;

use weft_model::NetworkId;

use super::{
    body, credentials,
    query::{Filters, Params},
    wire::{fields::Ignored, placement, service},
};

/// The body of a request that creates a service. The networks that it names exist.
pub fn service(data: &[u8]) {
    let resolve = |_: &str| Ok(NetworkId::from_random(1));
    let read = |body| service::read(body, &resolve, &mut Ignored::default());
    let Ok(spec) = body::parse(data).and_then(read) else { return };
    assert_eq!(read(service::write_as_sent(&spec)).expect("what was written can be read"), spec);
}

/// The credentials of a registry in the header of a request.
pub fn credentials(data: &[u8]) {
    let Ok(Some(auth)) = credentials::decode(data) else { return };
    let header = credentials::encode(&auth);
    assert_eq!(credentials::decode(header.as_bytes()), Ok(Some(auth)));
}

/// A constraint of a service.
pub fn constraint(text: &str) {
    let Ok(constraint) = placement::read_constraint(text) else { return };
    let read = placement::read_constraint(&placement::write_constraint(&constraint));
    assert_eq!(read.expect("what was written can be read"), constraint);
}

/// The filters of a list.
pub fn filters(text: &str) {
    let params: Params = [("filters".to_owned(), text.to_owned())].into_iter().collect();
    let Ok(filters) = Filters::read(&params, &["label", "name", "dangling"]) else { return };
    let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
    filters.labels("label", |key| labels.get(key));
    filters.any("name", |name| name == "web");
    drop(filters.flag("dangling"));
}
