//! Comparing records of the bench, which have thousands of lines: a failure names the places that differ, not all that is there.

use serde_json::Value;

/// Differences that a failure shows; more would say nothing new.
const SHOWN: usize = 10;

/// Panics with the places where `found` differs from `expected`.
#[track_caller]
pub(crate) fn assert_same(found: &Value, expected: &Value, what: &str) {
    let mut differing = Vec::new();
    differences(found, expected, "", &mut differing);
    if !differing.is_empty() {
        let more = differing.len().saturating_sub(SHOWN);
        differing.truncate(SHOWN);
        let rest = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        panic!("{what} differs:\n  {}{rest}", differing.join("\n  "));
    }
}

/// One line for each place, as `/cells/0/flops: 1 instead of 2`.
fn differences(found: &Value, expected: &Value, place: &str, differing: &mut Vec<String>) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            let lost = expected.keys().filter(|key| !found.contains_key(*key));
            for key in found.keys().chain(lost) {
                let at = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&at(found), &at(expected), &format!("{place}/{key}"), differing);
            }
        }
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                differences(found, expected, &format!("{place}/{i}"), differing);
            }
        }
        _ if found == expected => {}
        _ => differing.push(format!("{place}: {} instead of {}", brief(found), brief(expected))),
    }
}

/// A value in less than a line.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(values) => format!("an object of {}", values.len()),
        value => {
            let text = value.to_string();
            if text.chars().count() > 80 { text.chars().take(80).chain("..".chars()).collect() } else { text }
        }
    }
}

#[test]
fn differences_are_named_and_few() {
    use serde_json::json;
    let lines = |found: Value, expected: Value| {
        let mut lines = Vec::new();
        differences(&found, &expected, "", &mut lines);
        lines
    };
    assert!(lines(json!({"a": [1, {"b": null}]}), json!({"a": [1, {"b": null}]})).is_empty());
    assert_eq!(lines(json!({"a": [1, {"b": 2}]}), json!({"a": [1, {"b": 3}]})), ["/a/1/b: 2 instead of 3"]);
    assert_eq!(lines(json!({"a": 1}), json!({"b": "x"})), ["/a: 1 instead of null", "/b: null instead of \"x\""]);
    assert_eq!(lines(json!([1]), json!([1, 2])), [": a list of 1 instead of a list of 2"]);
    assert_eq!(brief(&json!("x".repeat(100))).len(), 82);
}
