//! Frames worked on side by side, results in the order in which the frames came.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// How often somebody who waits for a result looks whether it is still wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Says from any thread, without a lock, that nobody wants the results any more.
#[derive(Debug, Default)]
pub(crate) struct Halt {
    stopped: AtomicBool,
    /// Work of an earlier epoch is not begun any more.
    epoch: AtomicU64,
}

impl Halt {
    /// All work ends as soon as it can, up to [`resume`](Self::resume).
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Work that is given from now on is done again.
    pub fn resume(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// What asks whether work that begins now is still wanted.
    pub fn wanted(self: &Arc<Self>) -> impl Fn() -> bool + Send + Sync + 'static {
        let (halt, mine) = (Arc::clone(self), self.epoch.load(Ordering::Relaxed));
        move || !halt.is_stopped() && halt.epoch.load(Ordering::Relaxed) == mine
    }
}

/// Rung after each piece of work, until it is closed.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// How often it was rung, and whether it is closed.
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Bell {
    fn change(&self, change: impl FnOnce(&mut (u64, bool))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until it has been rung more often than `heard`; `false` once it is closed.
    fn wait(&self, heard: &mut u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(state, |(rung, closed)| rung == heard && !*closed);
        let (rung, closed) = *waited.unwrap_or_else(PoisonError::into_inner);
        *heard = rung;
        !closed
    }
}

/// A thread that hands on what is finished while no frame comes in: a stream may be slower than the codec, or pause.
pub(crate) struct Courier {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Courier {
    /// Calls `deliver` after each piece of work. It may take the stream lock.
    pub fn new(bell: &Arc<Bell>, deliver: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let mine = Arc::clone(bell);
        let work = move || {
            let mut heard = 0;
            while mine.wait(&mut heard) {
                deliver();
            }
        };
        let thread = std::thread::Builder::new().name("sdlout".to_owned()).spawn(work)?;
        Ok(Courier { bell: Arc::clone(bell), thread: Some(thread) })
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.bell.change(|(_, closed)| *closed = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How much is handed on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum HandOn {
    /// What is finished.
    Finished,
    /// What is finished; as long as there is no room for another frame, what comes next is waited for.
    MakeRoom,
    Everything,
}

/// The work on a frame ended in a panic, or was given up by [`Workers::clear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

enum Slot<R> {
    Done(Result<R, Lost>),
    Waiting(mpsc::Receiver<Result<R, Lost>>),
}

/// Worker threads and the queue of what they have been given. `I` says what a result belongs to.
pub(crate) struct Workers<I, R> {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    queue: VecDeque<(I, Slot<R>)>,
    /// Entries of the queue that a thread works on or will work on.
    in_flight: usize,
    /// The most entries of the queue: what needs no work is held behind slow work, and has memory too.
    most: usize,
    halt: Arc<Halt>,
    bell: Arc<Bell>,
}

impl<I, R: Send + 'static> Workers<I, R> {
    /// `threads` workers; with 0 the work is done in [`push`](Self::push).
    pub fn new(threads: usize, halt: &Arc<Halt>, bell: &Arc<Bell>) -> std::io::Result<Self> {
        let mut workers = Workers {
            jobs: None,
            threads: Vec::with_capacity(threads),
            queue: VecDeque::new(),
            in_flight: 0,
            most: 2 * threads,
            halt: Arc::clone(halt),
            bell: Arc::clone(bell),
        };
        if threads > 0 {
            let (sender, receiver) = mpsc::channel::<Job>();
            let receiver = Arc::new(Mutex::new(receiver));
            for number in 0..threads {
                let receiver = Arc::clone(&receiver);
                let work = move || {
                    loop {
                        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { break };
                        job();
                    }
                };
                workers.threads.push(std::thread::Builder::new().name(format!("sdl{number}")).spawn(work)?);
            }
            workers.jobs = Some(sender);
        }
        Ok(workers)
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Holds up to so many entries, and twice as many as there are workers in any case.
    pub fn hold(&mut self, most: usize) {
        self.most = most.max(2 * self.threads());
    }

    /// What asks whether work that is given now is still wanted.
    pub fn wanted(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        self.halt.wanted()
    }

    /// Nothing is being worked on.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Gives work to the next free worker.
    pub fn push(&mut self, item: I, work: impl FnOnce() -> R + Send + 'static) {
        let guarded = move || catch_unwind(AssertUnwindSafe(work)).map_err(|_| Lost);
        let Some(jobs) = &self.jobs else {
            self.queue.push_back((item, Slot::Done(guarded())));
            return;
        };
        let (sender, receiver) = mpsc::channel();
        let (wanted, bell) = (self.halt.wanted(), Arc::clone(&self.bell));
        let job = move || {
            if wanted() {
                let _ = sender.send(guarded());
            }
            bell.change(|(rung, _)| *rung += 1);
        };
        // Workers live as long as `jobs`; without them the receiver says that the work is lost.
        let _ = jobs.send(Box::new(job));
        self.in_flight += 1;
        self.queue.push_back((item, Slot::Waiting(receiver)));
    }

    /// Puts a result that needed no work in its place in the order.
    pub fn push_done(&mut self, item: I, result: R) {
        self.queue.push_back((item, Slot::Done(Ok(result))));
    }

    /// The oldest result, if it is there; with `wait` the oldest in any case. `None` where there is none (yet).
    ///
    /// Nobody waits for what is halted: it is lost.
    pub fn pop(&mut self, wait: bool) -> Option<(I, Result<R, Lost>)> {
        let (item, slot) = self.queue.pop_front()?;
        let receiver = match slot {
            Slot::Done(result) => return Some((item, result)),
            Slot::Waiting(receiver) => receiver,
        };
        let result = if wait {
            loop {
                match receiver.recv_timeout(LOOK_AGAIN) {
                    Ok(result) => break result,
                    Err(mpsc::RecvTimeoutError::Timeout) if !self.halt.is_stopped() => {}
                    Err(_) => break Err(Lost),
                }
            }
        } else {
            match receiver.try_recv() {
                Ok(result) => result,
                Err(mpsc::TryRecvError::Disconnected) => Err(Lost),
                Err(mpsc::TryRecvError::Empty) => {
                    self.queue.push_front((item, Slot::Waiting(receiver)));
                    return None;
                }
            }
        };
        self.in_flight -= 1;
        Some((item, result))
    }

    /// The next result to hand on: waits only while every worker has something to do, or too much is held.
    pub fn pop_ready(&mut self) -> Option<(I, Result<R, Lost>)> {
        let full = self.in_flight >= self.threads.len().max(1) || self.queue.len() > self.most;
        self.pop(full)
    }

    /// The next result to hand on.
    pub fn next(&mut self, how: HandOn) -> Option<(I, Result<R, Lost>)> {
        match how {
            HandOn::Finished => self.pop(false),
            HandOn::MakeRoom => self.pop_ready(),
            HandOn::Everything => self.pop(true),
        }
    }

    /// Forgets everything; what has begun is finished in the background and thrown away.
    pub fn clear(&mut self) {
        self.halt.epoch.fetch_add(1, Ordering::Relaxed);
        self.queue.clear();
        self.in_flight = 0;
    }
}

impl<I, R> Drop for Workers<I, R> {
    fn drop(&mut self) {
        self.halt.epoch.fetch_add(1, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers<I, R: Send + 'static>(threads: usize) -> Workers<I, R> {
        Workers::new(threads, &Arc::default(), &Arc::default()).unwrap()
    }

    #[test]
    fn results_come_in_order_whatever_takes_longest() {
        for threads in [0, 1, 4] {
            let mut workers = workers(threads);
            let mut seen = Vec::new();
            for n in 0..20u64 {
                workers.push(n, move || {
                    std::thread::sleep(Duration::from_millis((n * 7) % 5));
                    n * n
                });
                workers.push_done(100 + n, 0);
                while let Some((item, result)) = workers.pop_ready() {
                    seen.push((item, result.unwrap()));
                }
            }
            while let Some((item, result)) = workers.pop(true) {
                seen.push((item, result.unwrap()));
            }
            let expected: Vec<(u64, u64)> = (0..20).flat_map(|n| [(n, n * n), (100 + n, 0)]).collect();
            assert_eq!(seen, expected, "{threads} threads");
        }
    }

    #[test]
    fn a_panic_loses_one_result_and_no_worker() {
        for threads in [0, 1] {
            let mut workers = workers(threads);
            workers.push(0, || -> u8 { panic!("on purpose") });
            workers.push(1, || 7);
            assert_eq!(workers.pop(true), Some((0, Err(Lost))));
            assert_eq!(workers.pop(true), Some((1, Ok(7))));
            assert!(workers.is_idle() && workers.pop(true).is_none());
        }
    }

    #[test]
    fn what_needs_no_work_is_not_held_without_bound() {
        let mut workers = workers(2);
        let (go, wait) = mpsc::channel::<()>();
        workers.push(0, move || wait.recv().is_ok());
        for n in 1..=4 {
            assert!(workers.pop_ready().is_none());
            workers.push_done(n, true);
        }
        // One more than twice the workers: now the slow one is waited for, and all of them come.
        go.send(()).unwrap();
        let popped: Vec<_> = std::iter::from_fn(|| workers.pop_ready()).collect();
        assert_eq!(popped, (0..=4).map(|n| (n, Ok(true))).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_waits_for_what_is_halted() {
        let (halt, bell) = (Arc::<Halt>::default(), Arc::default());
        let mut workers = Workers::new(1, &halt, &bell).unwrap();
        let wanted = halt.wanted();
        let (done, end) = mpsc::channel();
        workers.push(0, move || {
            while wanted() {
                std::thread::yield_now();
            }
            let _ = end.recv();
        });
        halt.stop();
        assert_eq!(workers.pop(true), Some((0, Err(Lost))));
        // It may not even have begun.
        let _ = done.send(());
        halt.resume();
        workers.push(1, || ());
        assert_eq!(workers.pop(true), Some((1, Ok(()))));
    }

    #[test]
    fn a_courier_hears_of_every_result_and_ends() {
        let (halt, bell) = (Arc::default(), Arc::default());
        let workers = Arc::new(Mutex::new(Workers::new(2, &halt, &bell).unwrap()));
        let (sender, receiver) = mpsc::channel();
        let mine = Arc::clone(&workers);
        let courier = Courier::new(&bell, move || {
            while let Some((item, _)) = mine.lock().unwrap().pop(false) {
                sender.send(item).unwrap();
            }
        });
        for n in 0..5 {
            workers.lock().unwrap().push(n, || ());
        }
        assert!(receiver.iter().take(5).eq(0..5));
        drop(courier.unwrap());
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn what_is_cleared_never_comes_out() {
        let mut workers = workers(1);
        for n in 0..10 {
            workers.push(n, move || std::thread::sleep(Duration::from_millis(2)));
        }
        workers.clear();
        workers.push(99, || ());
        assert_eq!(workers.pop(true), Some((99, Ok(()))));
        assert!(workers.pop(true).is_none());
    }
}
