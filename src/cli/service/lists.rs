//! Adds items to the lists of a spec, and removes items from them.

use serde_json::{Value, json};

/// The items of a list. A value that is not a list becomes an empty one.
pub(super) fn items(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("the value is an array"),
    }
}

/// Removes items, and adds those that the list does not have.
pub(super) fn change_list(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let items = items(value);
    items.retain(|item| !remove.iter().any(|removed| item == removed));
    for text in add {
        if !items.iter().any(|item| item == text) {
            items.push(json!(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_in_a_list_once() {
        let check = |mut list: Value, add: &[&str], remove: &[&str], expected: Value| {
            let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            change_list(&mut list, &texts(add), &texts(remove));
            assert_eq!(list, expected);
        };
        check(Value::Null, &[], &["a"], json!([]));
        check(Value::Null, &[], &[], Value::Null);
        check(json!(["a", "b"]), &["b", "c", "c"], &["a"], json!(["b", "c"]));
        check(json!(["a"]), &["a"], &["a"], json!(["a"]));
    }
}
