use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Barrier, Notify};

use super::*;
use crate::engine::StepPhase;
use crate::error::{Error, Kind};
use crate::event::Progress;
use crate::lab::status::StepState;
use crate::lab::{JournalEntry, Outcome};

fn ends(summary: &Summary) -> Vec<(&str, StepPhase)> {
    summary
        .steps
        .iter()
        .map(|(id, state)| (id.as_str().trim_start_matches("fake/"), *state))
        .collect()
}

#[tokio::test]
async fn steps_without_an_arrow_between_them_are_at_work_at_once() {
    let mut bench = Bench::new();
    let meet = Arc::new(Barrier::new(3));
    for what in ["a", "b", "c"] {
        let (meet, world) = (meet.clone(), bench.world.clone());
        bench.step_that(what, &[], move |_| {
            let (meet, world) = (meet.clone(), world.clone());
            async move {
                // Passed only when all three are here.
                meet.wait().await;
                world.lock().expect("unpoisoned").insert(format!("fake/{what}"));
                Ok(())
            }
        });
    }
    let summary = bench.run(&CancellationToken::new()).await;
    assert_eq!(summary.changed(), 3, "{summary:?}");
}

#[tokio::test]
async fn a_step_begins_only_when_what_it_needs_is_there() {
    let mut bench = Bench::new();
    bench.step("c", &["a", "b"]);
    bench.step("a", &[]);
    bench.step("b", &["a"]);
    let summary = bench.run(&CancellationToken::new()).await.into_result().expect("succeeds");
    assert_eq!(summary.changed(), 3);
    let started: Vec<String> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::StepStarted { step, .. } => Some(step),
            _ => None,
        })
        .collect();
    assert_eq!(started, ["fake/a", "fake/b", "fake/c"]);
}

#[tokio::test]
async fn a_second_run_finds_nothing_to_do() {
    let mut bench = Bench::new();
    bench.step("a", &[]);
    bench.step("b", &["a"]);
    bench.run(&CancellationToken::new()).await.into_result().expect("succeeds");
    let again = bench.run(&CancellationToken::new()).await.into_result().expect("succeeds");
    assert_eq!((again.changed(), again.satisfied()), (0, 2));
}

#[tokio::test]
async fn the_intent_is_on_disk_before_the_act_and_the_outcome_after_it() {
    let mut bench = Bench::new();
    let (lab, world) = (bench.lab.clone(), bench.world.clone());
    bench.step_that("a", &[], move |_| {
        let (lab, world) = (lab.clone(), world.clone());
        async move {
            assert_eq!(lab.status()?.steps["fake/a"].state, StepState::Begun);
            world.lock().expect("unpoisoned").insert("fake/a".into());
            Ok(())
        }
    });
    bench.run(&CancellationToken::new()).await.into_result().expect("succeeds");
    assert_eq!(bench.lab.status().expect("reads").steps["fake/a"].state, StepState::Good);
}

#[tokio::test]
async fn a_step_that_says_it_is_done_and_is_not_has_failed() {
    let mut bench = Bench::new();
    bench.step_that("a", &[], |_| async { Ok(()) });
    let error = bench.run(&CancellationToken::new()).await.into_result().expect_err("is not there");
    assert!(error.message().contains("still not as wanted: not there"), "{error:?}");
    assert_eq!(error.step(), Some("fake/a"));
}

#[tokio::test]
async fn after_the_first_failure_nothing_begins_and_what_runs_stops_at_its_next_safe_point() {
    let mut bench = Bench::new();
    let running = Arc::new(Notify::new());
    let told = running.clone();
    bench.step_that("fails", &[], move |_| {
        let running = running.clone();
        async move {
            running.notified().await;
            Err(Error::failed("no such luck"))
        }
    });
    bench.step_that("runs", &[], move |context| {
        told.notify_one();
        async move { context.or_cancelled(std::future::pending()).await }
    });
    bench.step("later", &["fails"]);
    bench.step("after", &["runs"]);
    let summary = bench.run(&CancellationToken::new()).await;
    assert_eq!(
        ends(&summary),
        [
            ("after", StepPhase::Skipped),
            ("fails", StepPhase::Failed),
            ("later", StepPhase::Skipped),
            ("runs", StepPhase::Interrupted)
        ]
    );
    let error = summary.into_result().expect_err("one failed");
    assert_eq!((error.message(), error.step()), ("no such luck", Some("fake/fails")));
    let status = bench.lab.status().expect("reads");
    assert_eq!(status.steps["fake/runs"].state, StepState::Interrupted);
    assert!(matches!(status.run.and_then(|run| run.ended), Some((_, Outcome::Failed { .. }))));
}

#[tokio::test]
async fn an_interrupted_run_is_no_failure_and_the_next_one_goes_on() {
    let mut bench = Bench::new();
    let cancel = CancellationToken::new();
    let user = cancel.clone();
    let world = bench.world.clone();
    bench.step("before", &[]);
    bench.step_that("slow", &["before"], move |context| {
        user.cancel();
        let world = world.clone();
        async move {
            if !context.cancel.is_cancelled() {
                world.lock().expect("unpoisoned").insert("fake/slow".into());
            }
            context.proceed()
        }
    });
    bench.step("after", &["slow"]);
    let first = bench.run(&cancel).await;
    assert_eq!(first.failure.as_ref().map(Error::kind), Some(Kind::Interrupted));
    assert!(first.failure.expect("is there").message().contains("2 steps are left"));
    assert!(!bench.events().iter().any(|event| matches!(event, Event::StepFailed { .. })));
    bench.world.lock().expect("unpoisoned").insert("fake/slow".into());
    let second = bench.run(&CancellationToken::new()).await.into_result().expect("goes on");
    assert_eq!((second.changed(), second.satisfied()), (1, 2));
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_it_begins_does_nothing() {
    let mut bench = Bench::new();
    bench.step("a", &[]);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let summary = bench.run(&cancel).await;
    assert_eq!(ends(&summary), [("a", StepPhase::Skipped)]);
    assert_eq!(summary.failure.map(|error| error.kind()), Some(Kind::Interrupted));
    assert!(bench.world.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn a_network_failure_is_tried_again_and_said_each_time() {
    let mut bench = Bench::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let (count, world) = (tries.clone(), bench.world.clone());
    bench.step_that("a", &[], move |_| {
        let (count, world) = (count.clone(), world.clone());
        async move {
            if count.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err(Error::new(Kind::Network, "the mirror hung up"));
            }
            world.lock().expect("unpoisoned").insert("fake/a".into());
            Ok(())
        }
    });
    bench.run(&CancellationToken::new()).await.into_result().expect("the third try succeeds");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let said = |event: &&Event| matches!(event, Event::Notice { text, .. } if text.contains("the mirror hung up"));
    assert_eq!(bench.events().iter().filter(said).count(), 2);
    let kept = bench.lab.read_journal().expect("reads").records;
    let notices = kept.iter().filter(|record| matches!(record.entry, JournalEntry::Notice { .. }));
    assert_eq!(notices.count(), 2);
}

#[tokio::test]
async fn only_a_look_that_takes_a_while_is_told_of() {
    let mut bench = Bench::new();
    bench.step("quick", &[]);
    let sight = Arc::new(Notify::new());
    bench.steps.push(Arc::new(Fake {
        id: StepId::new("fake", "slow"),
        needs: Vec::new(),
        world: bench.world.clone(),
        sight: Some(sight.clone()),
        apply: Arc::new(|_| Box::pin(async { panic!("there is nothing to do") })),
    }));
    bench.world.lock().expect("unpoisoned").extend(["fake/quick".into(), "fake/slow".into()]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = told.clone();
    let events = EventSink::new(move |event| {
        if let Event::StepProgress { step, progress } = event {
            seen.lock().expect("unpoisoned").push((step, progress));
            sight.notify_one();
        }
    });
    let options = Options { command: Vec::new(), retry: Retry::default() };
    let summary =
        run(&bench.plan(), options, bench.journal(), events, CancellationToken::new()).await;
    assert_eq!(ends(&summary), [("quick", StepPhase::Unchanged), ("slow", StepPhase::Unchanged)]);
    let doing = Progress::Doing { what: "looking at how it is".into() };
    assert_eq!(*told.lock().expect("unpoisoned"), [("fake/slow".to_owned(), doing)]);
}

#[tokio::test]
async fn tries_are_bounded_and_other_failures_are_not_tried_again() {
    for (kind, expected) in [(Kind::Network, 4), (Kind::Untrusted, 1)] {
        let mut bench = Bench::new();
        let tries = Arc::new(AtomicUsize::new(0));
        let count = tries.clone();
        bench.step_that("a", &[], move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Err(Error::new(kind, "no")) }
        });
        let error = bench.run(&CancellationToken::new()).await.into_result().expect_err("fails");
        assert_eq!((error.kind(), tries.load(Ordering::SeqCst)), (kind, expected));
    }
}

#[tokio::test]
async fn waiting_for_another_try_ends_when_the_run_does() {
    let mut bench = Bench::new();
    bench.step_that("a", &[], |_| async { Err(Error::new(Kind::Network, "no")) });
    let cancel = CancellationToken::new();
    let user = cancel.clone();
    let events = EventSink::new(move |event| {
        if matches!(event, Event::Notice { .. }) {
            user.cancel();
        }
    });
    let retry = Retry {
        times: 3,
        first_wait: Duration::from_secs(1 << 30),
        longest_wait: Duration::from_secs(1 << 31),
    };
    let options = Options { command: Vec::new(), retry };
    let summary = run(&bench.plan(), options, bench.journal(), events, cancel).await;
    assert_eq!(ends(&summary), [("a", StepPhase::Interrupted)]);
}

#[tokio::test]
async fn a_step_that_panics_has_failed_and_the_run_ends_in_order() {
    let mut bench = Bench::new();
    bench.step_that("a", &[], |_| async { panic!("out of cheese") });
    bench.step("b", &["a"]);
    let summary = bench.run(&CancellationToken::new()).await;
    assert_eq!(ends(&summary), [("a", StepPhase::Failed), ("b", StepPhase::Skipped)]);
    let error = summary.into_result().expect_err("it panicked");
    assert!(error.message().contains("out of cheese"), "{error:?}");
    assert_eq!((error.kind(), error.step()), (Kind::Internal, Some("fake/a")));
}

#[tokio::test]
async fn a_stuck_step_is_named_so_and_has_a_way_out() {
    let mut bench = Bench::new();
    bench.step_that("a", &[], |_| async { Err(Error::new(Kind::Stuck, "half imported")) });
    let summary = bench.run(&CancellationToken::new()).await;
    assert_eq!(ends(&summary), [("a", StepPhase::Stuck)]);
    let error = summary.into_result().expect_err("it is stuck");
    assert!(error.hints()[0].contains("nestlab destroy"), "{error:?}");
    let state = &bench.lab.status().expect("reads").steps["fake/a"].state;
    assert!(matches!(state, StepState::Stuck(failure) if !failure.hints.is_empty()));
}
