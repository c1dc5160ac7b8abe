//! Downloads that are interrupted, damaged or changed on the way, and go on or start over rightly.

use std::sync::Arc;

use nestlab::Kind;
use nestlab::event::{Event, EventSink, Progress};
use nestlab::image::fetch;
use tokio_util::sync::CancellationToken;

use super::place::{Place, noise};
use crate::support::publisher::server::{Answer, Pace, good};

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_drops_at_twenty_places_is_resumed_to_the_right_digest() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0..20 => answer.pace(Pace::DropAfter(70_001 + earlier * 977)),
        _ => answer,
    });
    place.arrives().await;
    let ranges = place.ranges();
    assert_eq!(ranges.len(), 21);
    assert!(ranges.iter().skip(1).all(Option::is_some), "{ranges:?}");
    assert!(ranges.is_sorted(), "every piece starts after the one before: {ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_after_it_was_interrupted() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0 => answer.pace(Pace::SilentAfter(1_200_000)),
        _ => answer,
    });
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let events = EventSink::new(move |event| {
        if let Event::StepProgress { progress: Progress::Bytes { done, .. }, .. } = event
            && done > 1_000_000
        {
            stop.cancel();
        }
    });
    let events = events.for_step("image");
    let error = fetch(&place.manifest(), &place.store, &place.options, &events, &cancel)
        .await
        .expect_err("interrupted");
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(place.store.list().expect("lists"), []);
    place.arrives().await;
    let ranges = place.ranges();
    assert!(matches!(ranges[..], [None, Some(start)] if start > 1_000_000), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_damaged_is_fetched_anew() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0..4 => answer.pace(Pace::DropAfter(10_000)),
        _ => answer.pace(Pace::Whole),
    });
    place.get(&place.manifest()).await.expect_err("four drops without progress");
    let data = place.unfinished()[0].join("data");
    let mut bytes = fs_err::read(&data).expect("reads");
    bytes[5] ^= 1;
    fs_err::write(&data, bytes).expect("writes");
    place.arrives().await;
    assert_eq!(place.ranges().last(), Some(&None), "at the end the whole was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_starts_over_and_corrupts_nothing() {
    let place = Place::new();
    let bytes = place.release.bytes.clone();
    place.publisher.server.answer(&place.release.path, move |request| {
        let answer = Answer::new(200, bytes.clone()).header("etag", "\"x\"");
        if request.earlier < 2 { answer.pace(Pace::DropAfter(900_000)) } else { answer }
    });
    place.arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_in_the_middle_starts_over() {
    let place = Place::new();
    let (bytes, before) = (place.release.bytes.clone(), Arc::<[u8]>::from(noise(2_000_000)));
    place.publisher.server.answer(&place.release.path, move |request| match request.earlier {
        0 => good(request, &before).pace(Pace::DropAfter(900_000)),
        _ => good(request, &bytes),
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_)]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hides_a_change_is_found_out_by_its_tag() {
    let place = Place::new();
    let (bytes, before) = (place.release.bytes.clone(), Arc::<[u8]>::from(noise(2_000_000)));
    place.publisher.server.answer(&place.release.path, move |request| {
        let mut request = request.clone();
        request.headers.remove("if-range");
        match request.earlier {
            0 => good(&request, &before).pace(Pace::DropAfter(900_000)),
            _ => good(&request, &bytes),
        }
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_), None]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tag_the_date_allows_to_go_on() {
    let place = Place::new();
    place.answer(|mut answer, earlier| {
        answer.headers.retain(|(name, _)| *name != "etag");
        if earlier == 0 { answer.pace(Pace::DropAfter(900_000)) } else { answer }
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_)]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_tag_does_not_allow_to_go_on() {
    let place = Place::new();
    place.answer(|mut answer, earlier| {
        answer.headers.retain(|(name, _)| !matches!(*name, "etag" | "last-modified"));
        let answer = answer.header("etag", "W/\"about-the-same\"");
        if earlier == 0 { answer.pace(Pace::DropAfter(900_000)) } else { answer }
    });
    place.arrives().await;
    assert_eq!(place.ranges(), [None, None], "the pieces of two files may not be put together");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mirror_goes_on_where_the_first_one_ended() {
    let mut place = Place::new();
    place.options.attempts = 1;
    let manifest = place.manifest_with_mirror("/mirror");
    let path = format!("/mirror/{}", place.release.file);
    for end in [".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
        let body = place.publisher.server.current(&place.release.beside(end));
        place.publisher.server.serve(&format!("{path}{end}"), body.expect("published"));
    }
    let bytes = place.release.bytes.clone();
    place.publisher.server.answer(&path, move |request| match request.earlier {
        0 => good(request, &bytes).pace(Pace::DropAfter(900_000)),
        _ => Answer::new(404, *b"gone"),
    });
    let image = place.get(&manifest).await.expect("fetches");
    place.is_whole(&image);
    assert!(matches!(place.ranges()[..], [Some(_)]), "{:?}", place.ranges());
}
