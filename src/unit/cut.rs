//! Consistency groups as an operator asks for them: cuts on demand.

use super::domain::{Domain, Point};
use super::{Inner, IoError, Unit};
use crate::env::Env;
use crate::format::group::TransactionId;
use crate::mds::client::Client;

impl<E: Env> Unit<E> {
    /// The session at the metadata server, for what is not about this unit.
    pub fn metadata_server(&self) -> &Client<E> {
        &self.0.mds
    }

    /// The world.
    pub fn env(&self) -> &E {
        &self.0.env
    }

    /// Makes a cut of all volumes of a group of that name, on all of its units: everything that
    /// was acknowledged before this was called is in it. Gives the transaction that made it, or a
    /// later one; `None` where this unit has no volume of such a group.
    ///
    /// A group of this unit alone has no global transactions: then it is the unit's own number of
    /// the epoch, by unit 0, whichever number the unit has in its pool.
    pub async fn cut(&self, name: &str) -> Option<Result<TransactionId, IoError>> {
        let inner = &self.0;
        let (index, wanted) = {
            let state = inner.state.borrow();
            let is_it = |of: &super::domain::Domain| {
                of.group.as_ref().is_some_and(|group| *group.name == *name && !of.over)
            };
            let index = state.domains.iter().position(is_it)?;
            let domain = &state.domains[index];
            (index, domain.newest_anywhere())
        };
        let shared = inner.state.borrow().domains[index].is_shared();
        if let Some(epoch) = wanted
            && let Err(error) = inner.committed(Point { domain: index, epoch }).await
        {
            return Some(Err(error));
        }
        let state = inner.state.borrow();
        let domain = &state.domains[index];
        let last_cut = domain.group.as_ref().and_then(|group| group.last_cut);
        Some(Ok(last_cut.filter(|_| shared).unwrap_or_else(|| inner.own_cut(domain))))
    }
}

impl<E: Env> Inner<E> {
    /// The transaction that commits what is sealed of a domain, or this unit's own number of what
    /// is committed.
    pub(super) fn cut_of(&self, domain: &Domain) -> TransactionId {
        let global = domain.transaction().filter(|_| domain.is_shared());
        global.map_or_else(|| self.own_cut(domain), |(transaction, _)| transaction)
    }

    /// This unit's own number of what is committed of a domain.
    fn own_cut(&self, domain: &Domain) -> TransactionId {
        let (coordinator, number) = (0, domain.committed);
        TransactionId { coordinator, incarnation: self.journal.incarnation(), number }
    }
}
