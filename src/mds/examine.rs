//! Looking at the metadata without changing it: for `flipside check` and `flipside metadata dump`.

use super::backend::RegionBackend;
use super::catalog::{Catalog, CatalogFacts};
use super::mirrored::kept_by;
use super::opening::{MetadataPlace, catching, failed};
use super::overlay::Overlay;
use super::redb_store::RedbStore;
use super::store::StoreError;
use super::volume_table::Kept;

/// What was found.
#[derive(Debug)]
pub struct MetadataFacts {
    /// Which copies of the store's region header are damaged.
    pub headers_damaged: [bool; 2],
    /// What each copy of the volume table holds; `None` where it is damaged.
    pub table: [Option<Kept>; 2],
    /// Whether the store has the only copy of the pairs' lines.
    pub has_lines: bool,
    /// What the store holds, or what is wrong with it.
    pub store: Result<StoreFacts, StoreError>,
}

/// What a store holds.
#[derive(Debug)]
pub struct StoreFacts {
    /// What the volume table should hold.
    pub kept: Kept,
    /// The rest.
    pub catalog: CatalogFacts,
}

impl MetadataPlace {
    /// Looks at store and volume table. Fails only where they cannot be read at all.
    pub fn examine(&self) -> Result<MetadataFacts, StoreError> {
        let (_, table) = self.table()?;
        let headers_damaged = self.headers_damaged()?;
        let store = catching(|| self.examine_store());
        Ok(MetadataFacts { headers_damaged, table, has_lines: self.has_lines, store })
    }

    fn examine_store(&self) -> Result<StoreFacts, StoreError> {
        let (file, offset, capacity) = self.store_span()?;
        let region = RegionBackend::open(file, offset, capacity);
        let region = region.and_then(Overlay::new).map_err(|error| failed(&error))?;
        let mut store = RedbStore::open(region)?;
        store.verify()?;
        let kept = kept_by(&store)?;
        let catalog = Catalog::open(Box::new(store))?;
        self.check_pool(&catalog)?;
        Ok(StoreFacts { kept, catalog: catalog.facts()? })
    }
}
