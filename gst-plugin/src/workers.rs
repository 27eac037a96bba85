//! Frames worked on side by side, results in the order in which the frames came.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

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
    /// Jobs of an earlier epoch are not begun any more.
    epoch: Arc<AtomicU64>,
}

impl<I, R: Send + 'static> Workers<I, R> {
    /// `threads` workers; with 0 the work is done in [`push`](Self::push).
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut workers = Workers {
            jobs: None,
            threads: Vec::with_capacity(threads),
            queue: VecDeque::new(),
            in_flight: 0,
            epoch: Arc::default(),
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
        let (epoch, mine) = (Arc::clone(&self.epoch), self.epoch.load(Ordering::Relaxed));
        let job = move || {
            if epoch.load(Ordering::Relaxed) == mine {
                let _ = sender.send(guarded());
            }
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
    pub fn pop(&mut self, wait: bool) -> Option<(I, Result<R, Lost>)> {
        let (item, slot) = self.queue.pop_front()?;
        let receiver = match slot {
            Slot::Done(result) => return Some((item, result)),
            Slot::Waiting(receiver) => receiver,
        };
        let result = if wait {
            receiver.recv().unwrap_or(Err(Lost))
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

    /// The next result to hand on: waits only while every worker has something to do.
    pub fn pop_ready(&mut self) -> Option<(I, Result<R, Lost>)> {
        let full = self.in_flight >= self.threads.len().max(1);
        self.pop(full)
    }

    /// Forgets everything; what has begun is finished in the background and thrown away.
    pub fn clear(&mut self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.queue.clear();
        self.in_flight = 0;
    }
}

impl<I, R> Drop for Workers<I, R> {
    fn drop(&mut self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_come_in_order_whatever_takes_longest() {
        for threads in [0, 1, 4] {
            let mut workers = Workers::new(threads).unwrap();
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
            let mut workers = Workers::new(threads).unwrap();
            workers.push(0, || -> u8 { panic!("on purpose") });
            workers.push(1, || 7);
            assert_eq!(workers.pop(true), Some((0, Err(Lost))));
            assert_eq!(workers.pop(true), Some((1, Ok(7))));
            assert!(workers.is_idle() && workers.pop(true).is_none());
        }
    }

    #[test]
    fn what_is_cleared_never_comes_out() {
        let mut workers = Workers::new(1).unwrap();
        for n in 0..10 {
            workers.push(n, move || std::thread::sleep(Duration::from_millis(2)));
        }
        workers.clear();
        workers.push(99, || ());
        assert_eq!(workers.pop(true), Some((99, Ok(()))));
        assert!(workers.pop(true).is_none());
    }
}
