//! The store, the volume table, and both against the home.

use super::finding::{Code, Finding, Mend};
use super::lines;
use super::region::Recovered;
use crate::format::home::Line;
use crate::format::ids::{Incarnation, UnitId};
use crate::format::superblock::{FlagsPlace, Superblock};
use crate::mds::catalog::CatalogFacts;
use crate::mds::examine::{HostedFacts, MetadataFacts};
use crate::mds::mirrored::{Agreement, compare};
use crate::mds::raw::{RawVolume, one};
use crate::mds::records::{PairRecord, PoolInfo, VolumeInfo};
use crate::mds::store::{StoreError, Table};
use crate::mds::volume_table::{Kept, newest};

/// What is wrong with store and volume table by themselves; `name` is the device they are on.
pub fn judge(facts: &MetadataFacts, name: &str) -> Vec<Finding> {
    let place = format!("the metadata store on {name}");
    let mut findings = Vec::new();
    match &facts.store {
        Err(StoreError::Damaged(what)) if facts.has_lines => {
            let what =
                format!("{what}; the pool's flags are in it: restore a dump of the metadata");
            findings.push(Finding::lasting(Code::StoreDamaged, &place, what));
        }
        Ok(store)
            if facts.has_lines && compare(&store.kept, &facts.table) == Agreement::StoreBehind =>
        {
            let what = "it is older than the volume table, and so are the pool's flags in it";
            findings.push(Finding::lasting(Code::StoreOlder, &place, what));
        }
        Err(StoreError::Damaged(what)) if newest(&facts.table).is_some() => {
            findings.push(Finding::mendable(Code::StoreDamaged, &place, what, Mend::NewStore));
        }
        Err(StoreError::Damaged(what)) => {
            let what = format!(
                "{what}; and both copies of the volume table are damaged: restore a dump of the \
                 metadata"
            );
            findings.push(Finding::lasting(Code::VolumesLost, &place, what));
            return findings;
        }
        Err(error) => findings.push(Finding::lasting(Code::StoreUnreadable, &place, error)),
        Ok(store) => {
            if compare(&store.kept, &facts.table) == Agreement::StoreBehind {
                let what = "it is older than the volume table";
                findings.push(Finding::mendable(Code::StoreOlder, &place, what, Mend::NewStore));
            }
            if facts.headers_damaged != [false; 2] {
                let what = "a copy of a header is damaged";
                findings.push(Finding::mendable(
                    Code::StoreHeader,
                    &place,
                    what,
                    Mend::StoreHeader,
                ));
            }
        }
    }
    let sequence = facts.store.as_ref().ok().map(|store| store.kept.sequence);
    for (number, copy) in facts.table.iter().enumerate() {
        // Between the store's commit and the table a crash leaves it one change behind.
        let late = |copy: &Kept| sequence.is_some_and(|of| of > copy.sequence + 1);
        let what = match copy {
            None => "it is damaged",
            Some(copy) if late(copy) => "it is out of date",
            Some(_) => continue,
        };
        let place = format!("copy {} of the volume table on {name}", number + 1);
        findings.push(Finding::mendable(Code::VolumeTableCopy, place, what, Mend::VolumeTable));
    }
    findings
}

/// The volumes, by whichever of the two is good.
pub fn volumes(facts: &MetadataFacts) -> Option<Vec<VolumeInfo>> {
    match &facts.store {
        Ok(store) => Some(store.catalog.volumes.clone()),
        Err(_) => newest(&facts.table).map(volumes_of),
    }
}

/// The lines of that unit of a pool of so many pairs, where they are in the store.
pub fn home(facts: &MetadataFacts, unit: UnitId, pairs: u32) -> Option<Recovered> {
    home_in(&facts.store.as_ref().ok().filter(|_| facts.has_lines)?.catalog, unit, pairs)
}

/// The lines of that unit of a pool of so many pairs, which are in the store.
fn home_in(catalog: &CatalogFacts, unit: UnitId, pairs: u32) -> Option<Recovered> {
    let mut lines = vec![Line::FREE; pairs as usize];
    for (_, pair, line) in catalog.lines.iter().filter(|(of, _, _)| *of == unit) {
        *lines.get_mut(pair.0 as usize)? = *line;
    }
    let known = catalog.units.iter().find(|of| of.unit == unit);
    let incarnation = known.map_or(Incarnation::default(), |known| known.incarnation);
    Some(Recovered { lines, incarnation, groups: 0, in_doubt: 0, in_journal: 0 })
}

/// The volumes in what a table keeps.
pub fn volumes_of(kept: &Kept) -> Vec<VolumeInfo> {
    let rows = kept.rows.iter().filter(|((table, _), _)| *table == Table::Volumes);
    let raws = rows.filter_map(|(_, row)| one::<RawVolume>(row).ok());
    raws.filter_map(|raw| VolumeInfo::try_from(&raw).ok()).collect()
}

/// What is wrong with a store against the home of that unit. The store may be older, never newer:
/// it is told lazily.
pub fn against(store: &CatalogFacts, unit: UnitId, home: &Recovered) -> Vec<Finding> {
    let mut findings = Vec::new();
    for of in &store.units {
        if of.unit == unit && of.incarnation > home.incarnation {
            let what = format!(
                "the store knows of start {} and the unit's region of start {}: the region is an \
                 older copy, and what was written since is not in it",
                of.incarnation, home.incarnation
            );
            let place = format!("unit {unit}");
            findings.push(Finding::lasting(Code::IncarnationBehind, place, what));
        }
        let extents: u32 = of.granted.iter().map(|run| run.count).sum();
        if of.unit != unit && extents > 0 {
            let place = format!("unit {}", of.unit);
            let what = format!("{extents} extents are granted to a unit that there is not");
            findings.push(Finding::mendable(Code::ExtentLeaked, place, what, Mend::NewStore));
        }
    }
    let pairs = store.pairs.iter().filter(|(of, _)| *of == unit);
    findings.extend(pairs.filter_map(|(_, record)| judge_pair(store, record, home)));
    findings
}

/// What is wrong between a pool's devices and the store of the metadata server that has the pool;
/// and the home, which is `region` or in the store. Nothing of it can be mended from here.
pub fn against_server(
    store: &HostedFacts,
    superblock: &Superblock,
    region: Option<Recovered>,
) -> (Option<Recovered>, Vec<Finding>) {
    let pool = superblock.pool;
    let place = format!("pool {pool}");
    let Some((_, catalog)) = store.pools.iter().find(|(of, _)| *of == pool) else {
        let what = "the metadata store does not have it: it is another server's, or was forgotten";
        return (region, vec![Finding::lasting(Code::PoolUnknown, place, what)]);
    };
    let PoolInfo { extent_size, extents, reserve, .. } = catalog.pool;
    let here =
        (superblock.geometry.extent_size(), superblock.pool_extents(), superblock.journal_reserve);
    if (extent_size, extents, reserve) != here {
        let what = "the metadata store has it with other extents than its devices";
        return (region, vec![Finding::lasting(Code::PoolDiffers, place, what)]);
    }
    let home = match superblock.flags {
        FlagsPlace::Mds => home_in(catalog, superblock.unit, superblock.pool_extents()),
        FlagsPlace::Device | FlagsPlace::Nvram { .. } => region,
    };
    let Some(found) = &home else { return (home, Vec::new()) };
    let mut findings = lines::judge(&found.lines, superblock.geometry, &catalog.volumes);
    findings.extend(against(catalog, superblock.unit, found));
    for finding in &mut findings {
        finding.mend = None;
        finding.repairable = false;
    }
    (home, findings)
}

/// What is wrong with one pair of the store.
fn judge_pair(store: &CatalogFacts, record: &PairRecord, home: &Recovered) -> Option<Finding> {
    let pair = record.pair;
    let mend = |code, what: String| {
        Some(Finding::mendable(code, format!("pair {pair}"), what, Mend::NewStore))
    };
    let held: Vec<String> = record.slots.iter().flatten().map(ToString::to_string).collect();
    let leaked = |why: &str| {
        mend(Code::ExtentLeaked, format!("the store holds extent {} for {why}", held.join(" and ")))
    };
    let live = !record.is_released();
    let Some(line) = home.lines.get(pair.0 as usize) else {
        return live.then(|| leaked("a pair that there is not")).flatten();
    };
    let binding = &line.binding;
    if record.generation > binding.generation {
        let what = format!(
            "the store knows its generation {}, and the home has {}: what was committed since is \
             lost; restore the volumes from a copy",
            record.generation, binding.generation
        );
        return Some(Finding::lasting(Code::StoreNewer, format!("pair {pair}"), what));
    }
    if live && !store.volumes.iter().any(|volume| volume.id == record.volume) {
        return leaked("a volume that there is not");
    }
    if record.generation < binding.generation {
        return None;
    }
    if live && binding.owner.is_none() {
        return leaked("a pair that the home has released");
    }
    let same = record.slots == binding.extents
        && (!live
            || (binding.owner == Some((record.volume, record.logical))
                && record.data_slot == binding.data_slot));
    if same {
        return None;
    }
    mend(Code::StoreContradicts, format!("the store has {record:?} and the home {binding:?}"))
}
