//! Random problems: how many, of which seed, and how they come again.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

/// The draws of one property.
pub(crate) struct Draws {
    config: Config,
    test: String,
}

/// Draws for the test that calls, which is in the file `source`: so many cases, and so many steps to a smaller one that fails. Those of
/// another test are others. Regression seeds lie in the repository, beside the source; without the sources there are none to read.
pub(crate) fn draws(source: &'static str, cases: u32, max_shrink_iters: u32) -> Draws {
    let test = std::thread::current().name().expect("a test has a thread of its name").to_owned();
    let config = Config { cases, source_file: Some(source), max_shrink_iters, ..Config::default() };
    Draws { config, test }
}

impl Draws {
    /// Panics when `check` finds something wrong with a case, and says how it comes again.
    #[track_caller]
    pub(crate) fn check<S: Strategy>(self, cases: &S, check: impl Fn(S::Value) -> Result<(), String>) {
        self.run(run_seed(), cases, check).unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    fn run<S: Strategy>(
        self,
        seed: u64,
        cases: &S,
        check: impl Fn(S::Value) -> Result<(), String>,
    ) -> Result<(), String> {
        let Draws { config, test } = self;
        let rng_seed = RngSeed::Fixed(of_test(seed, &test));
        TestRunner::new(Config { rng_seed, ..config })
            .run(cases, |case| check(case).map_err(TestCaseError::fail))
            .map_err(|error| format!("{error}\nthe same cases again: {}", again(seed, &test)))
    }
}

/// The seed of this run of the tests: what `PROPTEST_RNG_SEED` says, as `cargo xtask test` does, or any.
fn run_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => rand::random::<u32>().into(),
    })
}

/// The seed of one test of the run.
fn of_test(seed: u64, test: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, test).hash(&mut hasher);
    hasher.finish()
}

/// The command that draws a test's cases again. Device and number of cases are part of it where something else than the defaults was asked for.
fn again(seed: u64, test: &str) -> String {
    let mut asked: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("FERROFLASH_TEST_"))
        .map(|(name, value)| format!("{name}={value} "))
        .collect();
    asked.sort();
    format!(
        "{}PROPTEST_RNG_SEED={seed} cargo test --package ferroflash_tests --test it -- --exact {test}",
        asked.concat()
    )
}

mod tests {
    use super::*;
    use std::cell::RefCell;

    /// What a property of this name sees, and what it says when the last of it is wrong.
    fn seen(seed: u64, test: &str) -> (Vec<(u64, bool)>, String) {
        let config = Config { cases: 20, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        let seen = RefCell::new(Vec::new());
        let strategy = proptest::arbitrary::any::<(u64, bool)>();
        let draws = Draws { config, test: test.to_owned() };
        let result = draws.run(seed, &strategy, |case| {
            seen.borrow_mut().push(case);
            if seen.borrow().len() == 20 { Err("the last one".to_owned()) } else { Ok(()) }
        });
        (seen.into_inner(), result.expect_err("the last case fails"))
    }

    #[test]
    fn cases_follow_from_the_seed_and_the_name_of_the_test() {
        let (first, said) = seen(7, "a::test");
        assert_eq!(first.len(), 20);
        assert_eq!(seen(7, "a::test"), (first.clone(), said));
        for (seed, test) in [(8, "a::test"), (7, "a::test_too")] {
            let (other, _) = seen(seed, test);
            assert!(other.iter().zip(&first).filter(|(a, b)| a.0 == b.0).count() == 0, "{seed}, {test}");
        }
    }

    #[test]
    fn a_failure_says_how_its_cases_come_again() {
        let (cases, said) = seen(7, "a::test");
        let (wrong, command) = said.split_once("\nthe same cases again: ").expect("a command");
        assert!(wrong.contains("the last one") && wrong.contains(&cases[19].0.to_string()), "{wrong}");
        let words = "PROPTEST_RNG_SEED=7 cargo test --package ferroflash_tests --test it -- --exact a::test";
        assert!(command.ends_with(words), "{command}");
    }

    /// The seed that was asked for, and one seed for all tests of a run.
    #[test]
    fn a_run_has_one_seed() {
        let asked = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
        assert_eq!(run_seed(), asked.unwrap_or_else(run_seed));
        let draws = draws(file!(), 1, 0);
        assert_eq!(draws.test, "support::draws::tests::a_run_has_one_seed");
    }
}
