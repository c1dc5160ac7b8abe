//! A line of QMP: what is understood as an answer keeps its meaning when it is sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::hypervisor::qemu::qmp::message::{Message, parse, request};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let again = match parse(data) {
        Err(_) | Ok(Message::Greeting) => return,
        Ok(Message::Answer { id: Some(id), outcome: Ok(value) }) => {
            let line = request(id, "stop", value.clone());
            let asked: Value = serde_json::from_slice(&line).expect("a request is JSON");
            assert_eq!((line.iter().filter(|byte| **byte == b'\n').count(), &asked["id"]), (1, &json!(id)));
            json!({ "id": id, "return": value })
        }
        Ok(Message::Answer { id, outcome: Ok(value) }) => {
            assert_eq!(id, None);
            json!({ "return": value })
        }
        Ok(Message::Answer { id, outcome: Err(refusal) }) => {
            json!({ "id": id, "error": { "class": refusal.class, "desc": refusal.desc } })
        }
        Ok(Message::Event(event)) => json!({ "event": event.name, "data": event.data }),
    };
    // serde_json may read back a fraction with another last bit.
    if !has_fraction(&again) {
        assert_eq!(parse(again.to_string().as_bytes()), parse(data));
    }
});

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(object) => object.values().any(has_fraction),
        _ => false,
    }
}
