//! Applying a half's changes to the store below, here or on a thread beside.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};

use crate::mds::store::{Changes, Store, StoreError};

/// Name of the thread.
const THREAD_NAME: &str = "flipside-mds-log";

/// Applies changes to a store, one commit at a time.
pub enum Checkpointer<S> {
    /// At once, by whoever begins it: the same calls give the same calls of the store.
    Inline(S),
    /// On a thread of its own, while appends go on.
    Thread(Worker),
}

/// What the thread is asked for.
enum Work {
    Apply(Arc<Changes>),
    /// Changes that nobody needs any more: letting go of so many takes its time, too.
    LetGo(Arc<Changes>),
}

/// The thread's other end. Dropped, it waits for the commit that is on its way.
pub struct Worker {
    work: Option<Sender<Work>>,
    done: Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Store + 'static> Checkpointer<S> {
    /// One with a thread.
    pub fn on_thread(mut store: S) -> io::Result<Self> {
        let (work, waiting) = channel();
        let (ended, done) = channel();
        let run = move || {
            while let Ok(work) = waiting.recv() {
                match work {
                    Work::Apply(changes) => {
                        if ended.send(store.commit(&changes)).is_err() {
                            return;
                        }
                    }
                    Work::LetGo(changes) => drop(changes),
                }
            }
        };
        let thread = Builder::new().name(THREAD_NAME.to_owned()).spawn(run)?;
        Ok(Checkpointer::Thread(Worker { work: Some(work), done, thread: Some(thread) }))
    }

    /// Begins to apply the changes; gives the outcome where it is known at once.
    pub fn begin(&mut self, changes: &Arc<Changes>) -> Option<Result<(), StoreError>> {
        match self {
            Checkpointer::Inline(store) => Some(store.commit(changes)),
            Checkpointer::Thread(worker) => {
                let asked = worker.ask(Work::Apply(Arc::clone(changes)));
                asked.err().map(Err)
            }
        }
    }

    /// Lets go of changes that were applied.
    pub fn let_go(&mut self, changes: Arc<Changes>) {
        if let Checkpointer::Thread(worker) = self {
            // A thread that has ended is told of by the next outcome.
            let _ = worker.ask(Work::LetGo(changes));
        }
    }

    /// How the one that was begun, and whose outcome was not told yet, has ended; where it has not,
    /// `wait`s for that or gives none.
    pub fn outcome(&mut self, wait: bool) -> Option<Result<(), StoreError>> {
        let Checkpointer::Thread(worker) = self else { return None };
        if wait {
            return Some(worker.done.recv().unwrap_or_else(|_| Err(ended_early())));
        }
        match worker.done.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(ended_early())),
        }
    }
}

impl Worker {
    fn ask(&self, work: Work) -> Result<(), StoreError> {
        let channel = self.work.as_ref().expect("it has work until it is dropped");
        channel.send(work).map_err(|_| ended_early())
    }
}

fn ended_early() -> StoreError {
    StoreError::Failed("the thread that applies its log has ended".to_owned())
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened, and ends the server at the next commit.
            let _ = thread.join();
        }
    }
}
