//! What apt and dpkg write, a line at a time: what is told of it is progress that makes sense, in text
//! that cannot drive a terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::event::{Event, EventSink, Progress};
use nestlab::guest::apt::Reader;

fuzz_target!(|data: &str| {
    let events = EventSink::new(|event| match event {
        Event::StepProgress { progress: Progress::Items { done, total, item }, .. } => {
            assert!(done <= total && is_plain(&item), "{done} of {total}: {item:?}");
        }
        Event::StepProgress { progress: Progress::Doing { what }, .. } => assert!(is_plain(&what)),
        Event::StepOutput { line, .. } => assert!(is_plain(&line), "{line:?}"),
        other => panic!("apt's output tells of {other:?}"),
    });
    let events = events.for_step("l1/upgrade");
    let mut reader = Reader::new(&events);
    data.lines().for_each(|line| reader.line(line));
});

/// Whether `text` is one line that does nothing to a terminal.
fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\t')
}
