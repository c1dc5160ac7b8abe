//! One line of QMP as data. What arrives is bytes from another program; nothing in it is believed
//! beyond its shape.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A line that QEMU sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// The answer to the command with this id.
    Answer {
        /// The command's id; `None` where QEMU could not tell which command it was.
        id: Option<u64>,
        /// What it returned.
        outcome: Result<Value, Refusal>,
    },
    /// Something that happened.
    Event(QmpEvent),
}

/// An event: `SHUTDOWN`, `GUEST_PANICKED`, `JOB_STATUS_CHANGE` …
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name.
    pub name: String,
    /// Its data, `Null` if it has none.
    pub data: Value,
}

/// QEMU's "no" to a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The error class, such as `GenericError` or `CommandNotFound`.
    pub class: String,
    /// What is wrong, in QEMU's words.
    pub desc: String,
}

/// Returns the message in `line`, or why it is none.
pub fn parse(line: &[u8]) -> Result<Message, String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("not a line of QMP: {error}"))?;
    let Value::Object(mut object) = value else {
        return Err("not a line of QMP: no object".to_owned());
    };
    if object.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    if let Some(name) = object.remove("event") {
        let Value::String(name) = name else {
            return Err("a QMP event without a name".to_owned());
        };
        let data = object.remove("data").unwrap_or_default();
        return Ok(Message::Event(QmpEvent { name, data }));
    }
    Ok(Message::Answer { id: object.get("id").and_then(Value::as_u64), outcome: outcome(object)? })
}

fn outcome(mut object: Map<String, Value>) -> Result<Result<Value, Refusal>, String> {
    if let Some(returned) = object.remove("return") {
        return Ok(Ok(returned));
    }
    let error = object.remove("error").ok_or("a QMP line that is no answer and no event")?;
    serde_json::from_value(error)
        .map(Err)
        .map_err(|error| format!("a QMP error of no shape: {error}"))
}

/// Returns the line that asks for `command` with `arguments` (`Null` for none) under `id`.
pub fn request(id: u64, command: &str, arguments: Value) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("execute".to_owned(), command.into());
    object.insert("id".to_owned(), id.into());
    if !arguments.is_null() {
        object.insert("arguments".to_owned(), arguments);
    }
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_lines_of_a_real_qemu_10_are_understood() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Ok(Message::Greeting));
        assert_eq!(
            parse(br#"{"return": {"status": "running", "running": true}, "id": 7}"#),
            Ok(Message::Answer {
                id: Some(7),
                outcome: Ok(json!({"status": "running", "running": true}))
            })
        );
        assert_eq!(
            parse(br#"{"error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Message::Answer {
                id: None,
                outcome: Err(Refusal { class: "GenericError".into(), desc: "no".into() })
            })
        );
        assert_eq!(
            parse(br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#),
            Ok(Message::Event(QmpEvent { name: "STOP".into(), data: Value::Null }))
        );
    }

    #[test]
    fn what_is_json_but_not_qmp_is_an_error() {
        for line in ["[]", "7", "{}", r#"{"event": 3}"#, r#"{"error": "x"}"#, "", "\u{1b}[2J"] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn an_answer_keeps_its_id_and_value(id in any::<u64>(), text in ".{0,40}") {
            let line = json!({"return": text, "id": id}).to_string();
            prop_assert_eq!(
                parse(line.as_bytes()),
                Ok(Message::Answer { id: Some(id), outcome: Ok(Value::String(text)) })
            );
        }

        #[test]
        fn a_request_is_one_line_whatever_is_in_it(argument in any::<String>()) {
            let line = request(1, "x", json!({"a": argument}));
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        }
    }
}
