use super::*;
use crate::engine::check;

#[tokio::test]
async fn every_step_is_looked_at_and_nothing_is_changed() {
    let mut bench = Bench::new();
    bench.step("b", &["a"]);
    bench.step("a", &[]);
    bench.world.lock().expect("unpoisoned").insert("fake/a".into());
    let found =
        check(&bench.plan(), bench.sink(), CancellationToken::new()).await.expect("can be seen");
    let found: Vec<(&str, &Check)> = found.iter().map(|(id, check)| (id.as_str(), check)).collect();
    assert_eq!(
        found,
        [("fake/a", &Check::Satisfied), ("fake/b", &Check::Needed("not there".into()))]
    );
    assert_eq!(bench.world.lock().expect("unpoisoned").len(), 1);
    assert!(bench.lab.read_journal().expect("reads").records.is_empty());
}

struct Blind(Fake);

#[async_trait]
impl Step for Blind {
    fn id(&self) -> &StepId {
        self.0.id()
    }

    fn guest(&self) -> Option<&str> {
        None
    }

    fn title(&self) -> String {
        self.0.title()
    }

    fn needs(&self) -> &[StepId] {
        self.0.needs()
    }

    async fn check(&self, context: &Context) -> Result<Check> {
        assert!(
            context.journal.stopped("l1").await.is_err(),
            "who only looks can write nothing into the journal"
        );
        Err(crate::Error::new(crate::Kind::Unreachable, "l1 does not answer"))
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        self.0.apply(context).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(Vec::new())
    }
}

fn blind(bench: &Bench, needs: &[&str]) -> Arc<dyn Step> {
    Arc::new(Blind(Fake {
        id: StepId::new("fake", "blind"),
        needs: needs.iter().map(|need| StepId::new("fake", need)).collect(),
        world: bench.world.clone(),
        sight: None,
        apply: Arc::new(|_| Box::pin(async { Ok(()) })),
    }))
}

#[tokio::test]
async fn what_cannot_be_looked_at_before_another_step_is_unknown() {
    let mut bench = Bench::new();
    bench.step("a", &[]);
    bench.steps.push(blind(&bench, &["a"]));
    let found =
        check(&bench.plan(), bench.sink(), CancellationToken::new()).await.expect("is no failure");
    assert_eq!(found[1].1, Check::Unknown("after fake/a".into()));
}

#[tokio::test]
async fn a_check_that_should_be_possible_and_fails_is_a_failure() {
    let mut bench = Bench::new();
    bench.step("a", &[]);
    bench.world.lock().expect("unpoisoned").insert("fake/a".into());
    bench.steps.push(blind(&bench, &["a"]));
    let error = check(&bench.plan(), bench.sink(), CancellationToken::new())
        .await
        .expect_err("a is there, and blind still cannot be seen");
    assert_eq!((error.step(), error.message()), (Some("fake/blind"), "l1 does not answer"));
}
