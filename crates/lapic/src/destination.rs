//! Who a message is for: destinations, and what an APIC answers to (Intel SDM vol. 3A 11.6.2).

/// How an APIC operates (Intel SDM vol. 3A 11.12.1, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Disabled by IA32_APIC_BASE: as if there were no APIC.
    Disabled,
    /// Registers in a memory page, 8-bit APIC ids.
    Xapic,
    /// Registers as MSRs, 32-bit APIC ids.
    X2apic,
}

/// The destination of a message, after decoding of its 8-bit or 32-bit form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this id.
    Physical(u32),
    /// An 8-bit message destination address, as devices, I/O APICs and xAPICs send it.
    LogicalXapic(u8),
    /// A 32-bit message destination address, as x2APICs send it: cluster in bits 31:16, set of
    /// members in bits 15:0.
    LogicalX2apic(u32),
    /// Every APIC.
    All,
    /// Every APIC but the sender.
    AllButSelf,
}

impl Destination {
    /// Decodes an 8-bit destination field: physical 0xff is everyone.
    pub const fn from_xapic(logical: bool, field: u8) -> Self {
        match (logical, field) {
            (true, mda) => Self::LogicalXapic(mda),
            (false, 0xff) => Self::All,
            (false, id) => Self::Physical(id as u32),
        }
    }

    /// Decodes a 32-bit destination field: all ones is everyone in both modes.
    pub const fn from_x2apic(logical: bool, field: u32) -> Self {
        match (logical, field) {
            (_, u32::MAX) => Self::All,
            (true, mda) => Self::LogicalX2apic(mda),
            (false, id) => Self::Physical(id),
        }
    }
}

/// What others must know of an APIC to address it; its owner keeps it current in the mailbox
/// through [`Mailbox::publish`](crate::Mailbox::publish).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationInfo {
    /// APIC id.
    pub apic_id: u32,
    /// Mode of operation.
    pub mode: ApicMode,
    /// Whether the spurious-interrupt vector register enables the APIC.
    pub software_enabled: bool,
    /// Logical APIC id of xAPIC mode: bits 31:24 of LDR. In x2APIC mode the logical id follows
    /// from `apic_id`.
    pub logical_id: u8,
    /// Whether DFR selects the cluster model; else the flat model.
    pub cluster: bool,
    /// Processor priority, for lowest-priority delivery.
    pub priority: u8,
}

impl DestinationInfo {
    /// The APIC id as messages address it: 8 bits in xAPIC mode.
    pub const fn physical_id(&self) -> u32 {
        match self.mode {
            ApicMode::X2apic => self.apic_id,
            ApicMode::Xapic | ApicMode::Disabled => self.apic_id & 0xff,
        }
    }

    /// LDR of x2APIC mode: cluster `id >> 4` in bits 31:16, member `id & 15` as one of bits 15:0
    /// (Intel SDM vol. 3A 11.12.10.2).
    pub const fn x2apic_logical_id(&self) -> u32 {
        (self.apic_id >> 4) << 16 | 1 << (self.apic_id & 15)
    }

    /// Whether this APIC is among the destinations of a message from the APIC with id `source`
    /// (`None`: from a device). An APIC that is disabled by IA32_APIC_BASE never is.
    pub fn matches(&self, destination: Destination, source: Option<u32>) -> bool {
        if self.mode == ApicMode::Disabled {
            return false;
        }
        match destination {
            Destination::Physical(id) => id == self.physical_id(),
            Destination::LogicalXapic(mda) => self.matches_narrow(mda),
            Destination::LogicalX2apic(mda) => self.matches_wide(mda),
            Destination::All => true,
            Destination::AllButSelf => source != Some(self.apic_id),
        }
    }

    fn matches_narrow(&self, mda: u8) -> bool {
        match self.mode {
            ApicMode::Disabled => false,
            // An 8-bit address names the first members of cluster 0; 0xff stays the broadcast.
            ApicMode::X2apic => mda == 0xff || self.matches_wide(u32::from(mda)),
            ApicMode::Xapic if self.cluster => {
                let same_cluster = mda >> 4 == 0xf || mda >> 4 == self.logical_id >> 4;
                same_cluster && mda & self.logical_id & 0xf != 0
            }
            ApicMode::Xapic => mda & self.logical_id != 0,
        }
    }

    fn matches_wide(&self, mda: u32) -> bool {
        match self.mode {
            ApicMode::Disabled => false,
            ApicMode::Xapic => u8::try_from(mda).is_ok_and(|mda| self.matches_narrow(mda)),
            ApicMode::X2apic => {
                let own = self.x2apic_logical_id();
                mda >> 16 == own >> 16 && mda & own & 0xffff != 0
            }
        }
    }

    /// The parts that change, packed for a single atomic word; see [`Self::unpack`].
    pub(crate) const fn pack(&self) -> u32 {
        let mode = match self.mode {
            ApicMode::Disabled => 0,
            ApicMode::Xapic => 1,
            ApicMode::X2apic => 2,
        };
        mode | (self.software_enabled as u32) << 2
            | (self.cluster as u32) << 3
            | (self.logical_id as u32) << 8
            | (self.priority as u32) << 16
    }

    /// The reverse of [`Self::pack`] for the APIC with this id.
    pub(crate) const fn unpack(apic_id: u32, packed: u32) -> Self {
        Self {
            apic_id,
            mode: match packed & 3 {
                0 => ApicMode::Disabled,
                1 => ApicMode::Xapic,
                _ => ApicMode::X2apic,
            },
            software_enabled: packed & 1 << 2 != 0,
            cluster: packed & 1 << 3 != 0,
            logical_id: (packed >> 8) as u8,
            priority: (packed >> 16) as u8,
        }
    }
}
