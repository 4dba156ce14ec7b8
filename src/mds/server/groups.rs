//! Consistency groups: units report and are told, are nudged when there is news, and groups are
//! made and deleted.
//!
//! A report is taken when it arrives and answered at the end of the turn, whose store transaction
//! holds what it led to ([`crate::mds::groups`]).

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::{Server, well_formed};
use crate::format::ids::PoolId;
use crate::format::record;
use crate::mds::catalog::Fault;
use crate::mds::error::Refusal;
use crate::mds::groups::prepared::Part;
use crate::mds::groups::rows::{Deletion, NewGroup};
use crate::mds::overview::{GroupSeen, MemberSeen};
use crate::mds::raw::Malformed;
use crate::mds::records::Claim;
use crate::mds::session::Session;
use crate::mds::store::StoreError;
use crate::mds::wire::{self, Header, Kind, Operation};
use crate::mutants::{Mutant, mutated};
use crate::txn::wire as said;

impl<P: Clone + PartialEq> Server<P> {
    /// Takes what a unit reports; what is malformed is refused when it is answered.
    pub(super) fn hear_reports(&mut self, claim: &Claim, body: &[u8]) {
        if let (false, Ok(reports)) = (claim.reads, said::reports(body)) {
            let pool = self.pools.name_here(claim.pool);
            self.groups.hear(pool, &reports, self.now);
        }
    }

    /// What the reports that were taken have led to goes into the turn's transaction.
    pub(super) fn stage_groups(&mut self) -> Result<(), StoreError> {
        self.groups.stage(self.now, &mut self.pools)
    }

    /// Hardens a group, or keeps it for a transaction's decision.
    pub(super) fn harden(
        &mut self,
        operation: Operation,
        claim: &Claim,
        body: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let (pool, unit) = (self.pools.name_here(claim.pool), claim.unit);
        let part = match operation {
            Operation::PrepareExtentFlags => Some(well_formed(Part::parse(body))?),
            _ => None,
        };
        let records = match &part {
            Some(part) => part.records.clone(),
            None => well_formed(record::unpack(body).ok_or(Malformed))?,
        };
        let catalog = self.pools.catalog_mut(claim.pool);
        let catalog = catalog.ok_or(Fault::Refused(Refusal::UnknownPool, 0))?;
        if self.groups.holds_pair(pool, &records) {
            return Err(Fault::Refused(Refusal::LineImpossible, 0));
        }
        match part {
            Some(part) => {
                catalog.may_harden(unit, &records)?;
                if mutated(Mutant::PreparedAppliedEarly) {
                    catalog.harden(unit, &records)?;
                }
                self.groups.prepare(pool, unit, part);
            }
            None => catalog.harden(unit, &records)?,
        }
        Ok(self.told(claim.pool))
    }

    /// The orders for a unit that reported this, as they are after the turn's commit.
    pub(super) fn give_orders(&mut self, claim: &Claim, body: &[u8]) -> Result<Vec<u8>, Fault> {
        if claim.reads {
            return Err(Fault::Refused(Refusal::ReadsOnly, 0));
        }
        let reports = well_formed(said::reports(body))?;
        let pool = self.pools.name_here(claim.pool);
        let mut reply = Vec::new();
        for order in self.groups.orders(pool, &reports, self.now) {
            said::put_order(&order, &mut reply);
        }
        Ok(reply)
    }

    /// A datagram for each unit that has new orders: they are in it, or it is to ask where they
    /// are too many.
    pub(super) fn nudges(&mut self) -> Vec<(P, Vec<u8>)> {
        let pools = self.groups.to_nudge(self.now);
        if pools.is_empty() {
            return Vec::new();
        }
        let here = |session: &Session<P>| self.pools.name_here(session.claim().pool);
        let chosen = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.claim().reads && pools.contains(&here(session)));
        let nudge = |(id, session): (u64, &Session<P>)| {
            let header = Header {
                kind: Kind::Nudge,
                operation: Operation::Coordinate,
                session: id,
                sequence: 0,
                detail: 0,
            };
            let mut body = Vec::new();
            let news = self.groups.news(here(session), self.now);
            news.iter().for_each(|order| said::put_order(order, &mut body));
            let mut datagrams = wire::encode(&header, &body, session.payload_max());
            if datagrams.len() > 1 {
                datagrams = wire::encode(&header, &[], session.payload_max());
            }
            Some((session.place()?.clone(), datagrams.pop()?))
        };
        chosen.filter_map(nudge).collect()
    }

    /// Makes a group.
    pub(super) fn create_group(&mut self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let asked = well_formed(NewGroup::parse(body))?;
        let number = self.groups.create(&asked, &self.pools, self.now)?;
        Ok(U32::new(number).as_bytes().to_vec())
    }

    /// Deletes a group.
    pub(super) fn delete_group(&mut self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        self.groups.delete(well_formed(Deletion::parse(body))?)?;
        Ok(Vec::new())
    }

    /// Refuses to do away with a volume of a group.
    pub(super) fn check_in_no_group(&self, pool: PoolId, body: &[u8]) -> Result<(), Fault> {
        let volume = crate::format::ids::VolumeId(super::volume(body)?.id.get());
        if self.groups.holds(self.pools.name_here(pool), Some(volume)) {
            return Err(Fault::Refused(Refusal::VolumeInGroup, volume.0.into()));
        }
        Ok(())
    }

    /// Up to `limit` groups from a number on, as they are shown.
    pub(super) fn groups_seen(&self, from: u32, limit: usize) -> Vec<GroupSeen> {
        let groups = self.groups.iter().filter(|of| of.group().id.0 >= from).take(limit);
        let seen = |of: &crate::txn::coordinator::Coordinator| {
            let group = of.group();
            let (transaction, stage, _) = of.progress();
            GroupSeen {
                group: group.id,
                name: group.name.clone(),
                version: group.version,
                life: group.life,
                transaction,
                stage,
                trouble: of.trouble(self.now),
            }
        };
        groups.map(seen).collect()
    }

    /// Up to `limit` volumes of groups after the first `skip`, as they are shown.
    pub(super) fn members_seen(&self, skip: u64, limit: usize) -> Vec<MemberSeen> {
        let members = self.groups.iter().flat_map(|of| {
            let (_, _, waited) = of.progress();
            of.group().members.iter().flat_map(move |(pool, volumes)| {
                let waited = waited.contains(pool);
                volumes.iter().map(move |volume| (of, *pool, *volume, waited))
            })
        });
        let page = members.skip(skip as usize).take(limit);
        page.map(|(of, pool, volume, waited)| {
            let catalog = self.pools.catalog(pool);
            let name = catalog.and_then(|catalog| catalog.name_of(volume));
            MemberSeen {
                group: of.group().id,
                pool,
                volume,
                name: name.unwrap_or_default().to_owned(),
                attached: of.is_attached(pool),
                waited,
            }
        })
        .collect()
    }
}
