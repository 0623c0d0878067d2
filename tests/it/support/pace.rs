//! How long a bystander's work takes without and with an attack.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// The times of one kind of work. They are printed and decide nothing, because another program may occupy the machine: a
/// test asserts that all of the work succeeds.
#[derive(Debug, Default)]
pub struct Pace {
    before: Mutex<Vec<Duration>>,
    during: Mutex<Vec<Duration>>,
}

/// When the work is done.
#[derive(Clone, Copy, Debug)]
pub enum When {
    BeforeAttack,
    DuringAttack,
}

impl Pace {
    /// Does the work and notes how long it took.
    pub async fn time<T>(&self, when: When, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        self.times(when).lock().unwrap().push(began.elapsed());
        done
    }

    fn times(&self, when: When) -> &Mutex<Vec<Duration>> {
        match when {
            When::BeforeAttack => &self.before,
            When::DuringAttack => &self.during,
        }
    }

    fn median(&self, when: When) -> Duration {
        let mut times = self.times(when).lock().unwrap();
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// Prints the medians and their ratio.
    pub fn print(&self, attack: &str) {
        let [before, during] = [When::BeforeAttack, When::DuringAttack].map(|when| self.median(when));
        let ratio = during.as_secs_f64() / before.as_secs_f64();
        println!("{attack}: median of a bystander {before:.1?} before, {during:.1?} during, ratio {ratio:.2}");
    }
}
