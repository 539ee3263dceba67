//! What every core knows of the cluster: who is there, and who owns what.
//!
//! A view is immutable. The control thread makes a new one whenever membership
//! changes and hands it to all cores; each core reads its own reference. Nodes
//! are named by [`NodeIx`], a small number that a process gives to a node id when
//! it first hears of it and never to another, so that what cores keep per node
//! (connections, hints) survives from one view to the next.

use std::sync::Arc;

use super::Consistency;
use super::membership::{Member, Membership, Roster, Stage, State, Terms};
use super::placement::{Ring, Table};
use crate::clock::{NodeHash, Origin, Version};
use crate::hash::{PARTITION_COUNT, PartitionId};

/// A node, as this process numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIx(pub u16);

impl NodeIx {
    /// The number, to index with.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A node that no number is left for: it is never reached.
const NOBODY: NodeIx = NodeIx(u16::MAX);

/// One node of a view.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: Arc<str>,
    /// What stands for the id in the origins of its writes.
    pub hash: NodeHash,
    /// Where peers reach it; a name, to be resolved on each connect.
    pub peer_address: Arc<str>,
    /// Where clients reach it.
    pub client_address: Arc<str>,
    /// What is believed of it.
    pub state: State,
    /// Which life of the node this is, and how often it was defended.
    pub incarnation: u64,
    /// Whether it may own partitions, now or soon.
    pub placed: bool,
    /// Whether it says that it holds all it owns.
    pub holding: bool,
    /// Whether it is going to leave, or has said goodbye.
    pub draining: bool,
}

impl Node {
    fn new(member: &Member, placed: bool) -> Self {
        Self {
            id: Arc::clone(&member.identity.id),
            hash: NodeHash::of(&member.identity.id),
            peer_address: Arc::clone(&member.identity.peer_address),
            client_address: Arc::clone(&member.identity.client_address),
            state: member.state,
            incarnation: member.incarnation,
            placed,
            holding: member.standing.holding,
            draining: member.standing.draining,
        }
    }
}

/// Makes the views of one process: keeps the numbers it has given to nodes.
#[derive(Debug)]
pub struct Views {
    ids: Vec<Arc<str>>,
    replication: usize,
    virtual_nodes: u32,
}

impl Views {
    /// Views in which each key has `replication` copies and each member
    /// `virtual_nodes` points on the ring.
    pub fn new(replication: usize, virtual_nodes: u32) -> Self {
        Self {
            ids: Vec::new(),
            replication,
            virtual_nodes,
        }
    }

    /// The cluster as `membership` knows it. Who left is no part of it.
    pub fn of(&mut self, membership: &Membership, placements: &mut Placements) -> View {
        let me = self.number(&membership.me().id).unwrap_or_default();
        let nodes = membership
            .members()
            .filter(|member| member.state != State::Left)
            .filter_map(|member| {
                let id = &member.identity.id;
                let node = Node::new(member, membership.may_own(id));
                Some((self.number(id)?, node))
            })
            .collect();
        let reading = self.share(membership.reading(), placements);
        let also = membership
            .also()
            .map(|roster| self.share(roster, placements));
        View::new(Parts {
            version: membership.version(),
            me,
            nodes,
            replication: self.replication,
            virtual_nodes: self.virtual_nodes,
            joined: membership.joined(),
            epoch: membership.epoch(),
            stage: membership.stage(),
            reading,
            also,
            copying: membership.copying(),
            fenced: membership.fenced(),
            placed: membership.placed(),
            leavers_agreed: membership.leavers_agreed(),
            cleared: membership.cleared(),
        })
    }

    /// Works out who owns what by a roster.
    fn share(&mut self, roster: &Roster, placements: &mut Placements) -> Shares {
        let ids: Vec<&str> = roster.members().iter().map(|id| &**id).collect();
        let members = roster.members().iter();
        let numbers: Vec<NodeIx> = members
            .map(|id| self.number(id).unwrap_or(NOBODY))
            .collect();
        let table = placements.table(&ids, self.virtual_nodes, self.replication);
        Shares::new(roster, &table, &numbers)
    }

    /// The number of `id`; `None` when no more can be given out.
    fn number(&mut self, id: &Arc<str>) -> Option<NodeIx> {
        let index = match self.ids.iter().position(|known| known == id) {
            Some(index) => index,
            None => {
                self.ids.push(Arc::clone(id));
                self.ids.len() - 1
            }
        };
        u16::try_from(index)
            .ok()
            .map(NodeIx)
            .filter(|&ix| ix != NOBODY)
    }
}

/// What a view is made of.
#[derive(Debug)]
pub struct Parts {
    /// Grows with every view of one process.
    pub version: u64,
    /// This node.
    pub me: NodeIx,
    /// Every node that is known, with its number.
    pub nodes: Vec<(NodeIx, Node)>,
    /// Copies of each key that were asked for.
    pub replication: usize,
    /// Points each member has on the ring.
    pub virtual_nodes: u32,
    /// Whether this node has found its cluster.
    pub joined: bool,
    /// How many rosters were settled.
    pub epoch: u64,
    /// How far this node is from one roster to the next.
    pub stage: Stage,
    /// Who owns what, by the roster this node reads from.
    pub reading: Shares,
    /// The same by the roster it writes to besides.
    pub also: Option<Shares>,
    /// See [`Membership::copying`].
    pub copying: u64,
    /// Whether others may have gone on without this node.
    pub fenced: bool,
    /// Whether no change of owners is under way, or to come.
    pub placed: bool,
    /// Whether all know who is going to leave.
    pub leavers_agreed: bool,
    /// Up to which version everything written is forgotten.
    pub cleared: Version,
}

/// The owners of all partitions by one roster.
#[derive(Clone, Debug)]
pub struct Shares {
    roster: Roster,
    copies: usize,
    owners: Box<[NodeIx]>,
}

impl Shares {
    /// What the table says of a roster whose members have these numbers.
    fn new(roster: &Roster, table: &Table, numbers: &[NodeIx]) -> Self {
        let owners = PartitionId::all().flat_map(|partition| table.owners(partition));
        Self {
            roster: roster.clone(),
            copies: table.replication(),
            owners: owners.map(|&index| numbers[usize::from(index)]).collect(),
        }
    }

    #[inline]
    fn owners(&self, partition: PartitionId) -> &[NodeIx] {
        debug_assert_eq!(self.owners.len(), PARTITION_COUNT * self.copies);
        let start = partition.index() * self.copies;
        &self.owners[start..start + self.copies]
    }
}

/// Tables that were worked out lately: members come and go, and the states of those
/// that stay change more often than who is placed.
#[derive(Debug, Default)]
pub struct Placements(Vec<(PlacementKey, Arc<Table>)>);

type PlacementKey = (Vec<String>, u32, usize);

impl Placements {
    /// How many tables are kept.
    const KEPT: usize = 64;

    fn table(&mut self, ids: &[&str], virtual_nodes: u32, replication: usize) -> Arc<Table> {
        let same = |(known, points, copies): &PlacementKey| {
            *points == virtual_nodes && *copies == replication && known.iter().eq(ids.iter())
        };
        if let Some((_, table)) = self.0.iter().find(|(key, _)| same(key)) {
            return Arc::clone(table);
        }
        let table = Arc::new(Table::new(ids, virtual_nodes, replication));
        if self.0.len() >= Self::KEPT {
            self.0.remove(0);
        }
        let ids = ids.iter().map(|&id| id.to_owned()).collect();
        self.0
            .push(((ids, virtual_nodes, replication), Arc::clone(&table)));
        table
    }
}

/// The cluster as one node sees it.
#[derive(Debug)]
pub struct View {
    parts: Parts,
    nodes: Vec<Option<Node>>,
    solo: bool,
}

impl View {
    /// Nodes with the same rosters agree on the owners.
    pub fn new(mut parts: Parts) -> Self {
        let mut nodes = Vec::new();
        for (ix, node) in std::mem::take(&mut parts.nodes) {
            if nodes.len() <= ix.index() {
                nodes.resize_with(ix.index() + 1, || None);
            }
            nodes[ix.index()] = Some(node);
        }
        let owners = &parts.reading.owners;
        let alone = !owners.is_empty() && owners.iter().all(|owner| *owner == parts.me);
        let solo = alone && parts.also.is_none();
        Self { parts, nodes, solo }
    }

    /// A cluster of one.
    pub fn alone(id: &str, replication: usize, virtual_nodes: u32) -> Self {
        let node = Node {
            id: Arc::from(id),
            hash: NodeHash::of(id),
            peer_address: Arc::from(""),
            client_address: Arc::from(""),
            state: State::Alive,
            incarnation: 0,
            placed: true,
            holding: true,
            draining: false,
        };
        Self::settled(
            NodeIx(0),
            vec![(NodeIx(0), node)],
            replication,
            virtual_nodes,
        )
    }

    /// A cluster in which no change of owners is under way; all nodes share the partitions.
    pub fn settled(
        me: NodeIx,
        nodes: Vec<(NodeIx, Node)>,
        replication: usize,
        virtual_nodes: u32,
    ) -> Self {
        let roster = Roster::founded(nodes.iter().map(|(_, node)| Arc::clone(&node.id)));
        let number = |id: &Arc<str>| {
            let node = nodes.iter().find(|(_, node)| node.id == *id);
            node.map(|(ix, _)| *ix).unwrap_or_default()
        };
        let numbers: Vec<NodeIx> = roster.members().iter().map(number).collect();
        let ids: Vec<&str> = roster.members().iter().map(|id| &**id).collect();
        let table = Table::new(&ids, virtual_nodes, replication);
        Self::new(Parts {
            version: 1,
            me,
            nodes,
            replication,
            virtual_nodes,
            joined: true,
            epoch: 1,
            stage: Stage::Settled,
            reading: Shares::new(&roster, &table, &numbers),
            also: None,
            copying: 0,
            fenced: false,
            placed: true,
            leavers_agreed: true,
            cleared: Version::ZERO,
        })
    }

    /// Grows with every view of one process.
    pub fn version(&self) -> u64 {
        self.parts.version
    }

    /// Up to which version everything written is forgotten.
    pub fn cleared(&self) -> Version {
        self.parts.cleared
    }

    /// This node.
    #[inline]
    pub fn me(&self) -> NodeIx {
        self.parts.me
    }

    /// Whether this node has found its cluster; until then it owns nothing surely.
    #[inline]
    pub fn joined(&self) -> bool {
        self.parts.joined
    }

    /// Every node that is known, by id.
    pub fn members(&self) -> Vec<&Node> {
        let mut members: Vec<_> = self.nodes.iter().flatten().collect();
        members.sort_unstable_by_key(|node| &*node.id);
        members
    }

    /// Whether this node owns everything alone.
    #[inline]
    pub fn solo(&self) -> bool {
        self.solo
    }

    /// The owners of a partition, the primary first.
    #[inline]
    pub fn owners(&self, partition: PartitionId) -> &[NodeIx] {
        self.parts.reading.owners(partition)
    }

    /// Its owners by the roster that is written to besides, where one is; they may be the
    /// same.
    #[inline]
    pub fn owners_also(&self, partition: PartitionId) -> Option<&[NodeIx]> {
        Some(self.parts.also.as_ref()?.owners(partition))
    }

    /// Whether a node is among those that a partition is written to.
    #[inline]
    pub fn takes(&self, node: NodeIx, partition: PartitionId) -> bool {
        self.owners(partition).contains(&node)
            || self
                .owners_also(partition)
                .is_some_and(|owners| owners.contains(&node))
    }

    /// Whether this node is among a partition's owners.
    #[inline]
    pub fn owns(&self, partition: PartitionId) -> bool {
        self.solo || self.owners(partition).contains(&self.parts.me)
    }

    /// By which terms this node answers, and counts answers: none while it is fenced.
    #[inline]
    pub fn terms(&self) -> Terms {
        match self.parts.fenced {
            true => Terms::default(),
            false => self.rosters(),
        }
    }

    /// By which rosters this node reads and writes.
    #[inline]
    pub fn rosters(&self) -> Terms {
        Terms {
            reading: self.parts.reading.roster.id(),
            also: (self.parts.also.as_ref()).map_or_else(Default::default, |also| also.roster.id()),
        }
    }

    /// The ids of all that share the partitions this node reads.
    pub fn roster(&self) -> impl Iterator<Item = &str> {
        self.parts.reading.roster.members().iter().map(|id| &**id)
    }

    /// The same of those it writes to besides.
    pub fn roster_also(&self) -> impl Iterator<Item = &str> {
        let also = self.parts.also.iter();
        also.flat_map(|also| also.roster.members()).map(|id| &**id)
    }

    /// How far this node is from one roster to the next.
    #[inline]
    pub fn stage(&self) -> Stage {
        self.parts.stage
    }

    /// How many rosters were settled.
    pub fn epoch(&self) -> u64 {
        self.parts.epoch
    }

    /// With whom this node copies, see [`Membership::copying`].
    pub fn companions(&self) -> u64 {
        self.parts.copying
    }

    /// Whether what is copied now is all that a new owner must have: all that serve write
    /// to the new roster too, or there is none.
    pub fn copying(&self) -> bool {
        self.parts.copying != 0 || !self.parts.stage.reads_old()
    }

    /// Whether this node has to be compared with the other owners of a partition although it
    /// holds it: it is an owner by both rosters, and a quorum of the new owners could consist
    /// of old ones that all missed a write.
    pub fn needs_refresh(&self, partition: PartitionId) -> bool {
        let Some(also) = self.owners_also(partition) else {
            return false;
        };
        let (old, new) = (self.owners(partition).len(), also.len());
        let quorum = |owners| Consistency::Quorum.needed(owners);
        self.parts.stage.reads_old()
            && self.parts.copying != 0
            && also.contains(&self.parts.me)
            && self.owns(partition)
            && quorum(new) + quorum(old) <= old
    }

    /// Whether an owner is not waited for any more: it is away, and the members have decided
    /// to go on without it.
    pub fn given_up(&self, owner: NodeIx) -> bool {
        let goes_on = |node: &Node| match &self.parts.also {
            Some(target) if self.parts.stage.reads_old() => target.roster.contains(&node.id),
            _ => true,
        };
        self.node(owner)
            .is_none_or(|node| node.state == State::Dead && !goes_on(node))
    }

    /// Whether others may have gone on without this node.
    #[inline]
    pub fn fenced(&self) -> bool {
        self.parts.fenced
    }

    /// Whether this node can leave without a key losing its quorum or its last copy: it owns
    /// nothing, or enough others hold what it owns. With nobody who could take over it can.
    pub fn can_spare_me(&self) -> bool {
        let me = self.parts.me;
        let may_stay = |node: &Node| node.placed && !node.draining;
        let mut others = self.nodes().filter(|(ix, _)| *ix != me);
        if !self.parts.joined || !others.any(|(_, node)| may_stay(node)) {
            return true;
        }
        let is_strong = |node: &Node| may_stay(node) && node.state == State::Alive && node.holding;
        let holds = |owner: &&NodeIx| **owner != me && self.node(**owner).is_some_and(is_strong);
        self.parts.placed
            && self.parts.leavers_agreed
            && PartitionId::all().all(|partition| {
                let owners = self.owners(partition);
                let needed = Consistency::Quorum.needed(owners.len());
                !owners.contains(&me) || owners.iter().filter(holds).count() >= needed
            })
    }

    /// The ids of a partition's owners, the primary first.
    pub fn owner_ids(&self, partition: PartitionId) -> impl Iterator<Item = &str> {
        self.owners(partition)
            .iter()
            .filter_map(|&ix| self.node(ix))
            .map(|node| &*node.id)
    }

    /// What is known of a node.
    pub fn node(&self, ix: NodeIx) -> Option<&Node> {
        self.nodes.get(ix.index())?.as_ref()
    }

    /// Whether it makes sense to send something to a node.
    #[inline]
    pub fn reachable(&self, ix: NodeIx) -> bool {
        self.node(ix).is_some_and(|node| node.state != State::Dead)
    }

    /// Every node that is known.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIx, &Node)> {
        let numbered = self.nodes.iter().enumerate();
        numbered.filter_map(|(index, node)| Some((NodeIx(index as u16), node.as_ref()?)))
    }

    /// The id of the node an origin stands for, if it is known.
    pub fn origin_name(&self, origin: Origin) -> Option<&str> {
        let hash = origin.node();
        self.nodes()
            .find(|(_, node)| node.hash == hash)
            .map(|(_, node)| &*node.id)
    }

    /// Copies of each key that were asked for; there are no more than members.
    pub fn replication_wanted(&self) -> usize {
        self.parts.replication
    }

    /// Points each member has on the ring.
    pub fn virtual_nodes(&self) -> u32 {
        self.parts.virtual_nodes
    }

    /// The ring behind the table: each point with the id of its member.
    pub fn ring(&self) -> Vec<(u64, &str)> {
        let members = self.parts.reading.roster.members();
        let ids: Vec<&str> = members.iter().map(|id| &**id).collect();
        Ring::new(&ids, self.parts.virtual_nodes)
            .points()
            .map(|(point, member)| (point, ids[member]))
            .collect()
    }
}
