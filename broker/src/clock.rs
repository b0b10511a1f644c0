//! The only module of the broker that reads a clock, and the guard that decides whether
//! wall time can be believed.
//!
//! On Linux `CLOCK_REALTIME - CLOCK_BOOTTIME` is constant but for steps: a slewed clock
//! slews both. So one remembered difference shows every step, and a clock that is put
//! right again is believed again. While it is not believed nothing is issued and no
//! listing is pruned; refusing, revoking and listing go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ephor_proto::limits::CLOCK_STEP_MILLIS;
use ephor_proto::time::{Boottime, Clock, UnixMillis};

/// A clock shared by everything in the process.
pub type SharedClock = Arc<dyn Clock + Send + Sync>;

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// As the shared form that the rest of the broker takes.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> UnixMillis {
        UnixMillis::from_millis(read(rustix::time::ClockId::Realtime))
    }

    fn boottime(&self) -> Boottime {
        Boottime::from_millis(read(rustix::time::ClockId::Boottime))
    }
}

/// Milliseconds; a time before 1970 reads as 1970.
fn read(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}

/// Measures what a stage costs, on a clock that nobody can set.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(rustix::time::Timespec);

impl Stopwatch {
    /// From now.
    #[must_use]
    pub fn start() -> Self {
        Self(rustix::time::clock_gettime(
            rustix::time::ClockId::Monotonic,
        ))
    }

    /// Microseconds since the start.
    #[must_use]
    pub fn micros(self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = now.tv_sec.saturating_sub(self.0.tv_sec);
        let nanos = seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(now.tv_nsec - self.0.tv_nsec);
        u64::try_from(nanos / 1000).unwrap_or(0)
    }
}

/// Why wall time is not believed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockFault {
    /// It moved against boot time since the broker started.
    #[error(
        "the wall clock stepped by {0:+} s since the broker started; put it right (chronyc tracking), \
         or restart the broker if the new time is the true one"
    )]
    Stepped(i64),
    /// It is behind what an earlier run of this store has already seen.
    #[error(
        "the wall clock is {0} s behind the latest time this store has seen; put it right (chronyc tracking)"
    )]
    Behind(u64),
}

/// Compares wall time with boot time and with the stored high-water mark.
pub struct ClockGuard {
    clock: SharedClock,
    /// Wall minus boot time when the broker started, milliseconds.
    offset: i128,
    /// Latest believed wall time, from earlier runs and this one. Only rises.
    high_water: AtomicU64,
}

impl ClockGuard {
    /// A guard that takes the present difference of the clocks as the right one;
    /// `high_water` is the latest wall time that earlier runs stored.
    #[must_use]
    pub fn new(clock: SharedClock, high_water: UnixMillis) -> Self {
        let offset = offset(clock.as_ref());
        Self {
            clock,
            offset,
            high_water: AtomicU64::new(high_water.as_millis()),
        }
    }

    /// Wall time now, if it can be believed.
    ///
    /// # Errors
    /// Says by how much it is off and what to do.
    pub fn check(&self) -> Result<UnixMillis, ClockFault> {
        let step = offset(self.clock.as_ref()) - self.offset;
        if step.unsigned_abs() > u128::from(CLOCK_STEP_MILLIS) {
            return Err(ClockFault::Stepped(
                i64::try_from(step / 1000).unwrap_or(i64::MAX),
            ));
        }
        let now = self.clock.wall();
        let seen = self.high_water.fetch_max(now.as_millis(), Ordering::AcqRel);
        let behind = UnixMillis::from_millis(seen).millis_since(now);
        if behind > CLOCK_STEP_MILLIS {
            return Err(ClockFault::Behind(behind / 1000));
        }
        Ok(now)
    }

    /// Latest wall time believed so far, to be stored.
    #[must_use]
    pub fn high_water(&self) -> UnixMillis {
        UnixMillis::from_millis(self.high_water.load(Ordering::Acquire))
    }
}

fn offset(clock: &dyn Clock) -> i128 {
    i128::from(clock.wall().as_millis()) - i128::from(clock.boottime().as_millis())
}

/// A clock that moves only when told to.
#[cfg(test)]
pub(crate) struct FakeClock {
    wall: AtomicU64,
    boot: AtomicU64,
}

#[cfg(test)]
impl FakeClock {
    /// At 2027-01-15, an hour after boot.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            wall: AtomicU64::new(1_800_000_000_000),
            boot: AtomicU64::new(3_600_000),
        })
    }

    /// Lets time pass on both clocks.
    pub(crate) fn advance_millis(&self, millis: u64) {
        self.wall.fetch_add(millis, Ordering::SeqCst);
        self.boot.fetch_add(millis, Ordering::SeqCst);
    }

    /// Steps the wall clock alone.
    pub(crate) fn step_wall_millis(&self, millis: i64) {
        if millis < 0 {
            self.wall.fetch_sub(millis.unsigned_abs(), Ordering::SeqCst);
        } else {
            self.wall.fetch_add(millis.unsigned_abs(), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
impl Clock for FakeClock {
    fn wall(&self) -> UnixMillis {
        UnixMillis::from_millis(self.wall.load(Ordering::SeqCst))
    }

    fn boottime(&self) -> Boottime {
        Boottime::from_millis(self.boot.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_step_stops_and_a_correction_resumes() {
        let fake = FakeClock::new();
        let guard = ClockGuard::new(fake.clone(), UnixMillis::from_millis(0));
        fake.advance_millis(7_200_000);
        assert!(guard.check().is_ok());
        fake.step_wall_millis(7_200_000);
        assert_eq!(guard.check(), Err(ClockFault::Stepped(7200)));
        fake.step_wall_millis(-7_200_000);
        assert!(guard.check().is_ok());
        fake.step_wall_millis(-7_200_000);
        assert_eq!(guard.check(), Err(ClockFault::Stepped(-7200)));
        fake.step_wall_millis(7_170_000);
        assert!(guard.check().is_ok(), "30 s are tolerated");
    }

    #[test]
    fn a_disbelieved_time_does_not_raise_the_high_water_mark() {
        let fake = FakeClock::new();
        let guard = ClockGuard::new(fake.clone(), UnixMillis::from_millis(0));
        let before = guard.check().unwrap();
        fake.step_wall_millis(7_200_000);
        assert!(guard.check().is_err());
        assert_eq!(guard.high_water(), before);
    }

    #[test]
    fn a_restart_behind_the_stored_mark_is_refused() {
        let fake = FakeClock::new();
        let mark = fake.wall().saturating_add_millis(7_200_000);
        let guard = ClockGuard::new(fake.clone(), mark);
        assert_eq!(guard.check(), Err(ClockFault::Behind(7200)));
        fake.advance_millis(7_180_000);
        assert!(guard.check().is_ok());
        assert_eq!(guard.high_water(), mark);
    }

    #[test]
    fn the_system_clocks_run() {
        let clock = SystemClock;
        assert!(clock.wall().as_millis() > 1_700_000_000_000);
        assert!(clock.boottime().as_millis() > 0);
    }
}
