//! What every core knows of the cluster: who is there, and who owns what.
//!
//! A view is immutable. The control thread makes a new one whenever membership
//! changes and hands it to all cores; each core reads its own reference. Nodes
//! are named by [`NodeIx`], a small number that a process gives to a node id when
//! it first hears of it and never to another, so that what cores keep per node
//! (connections, hints) survives from one view to the next.

use std::sync::Arc;

use super::membership::{Member, Membership, State};
use super::placement::{OWNERS_MAX, Ring, Table};
use crate::clock::{NodeHash, Origin};
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
    /// Whether it may own partitions.
    pub placed: bool,
}

impl From<&Member> for Node {
    fn from(member: &Member) -> Self {
        Self {
            id: Arc::clone(&member.identity.id),
            hash: NodeHash::of(&member.identity.id),
            peer_address: Arc::clone(&member.identity.peer_address),
            client_address: Arc::clone(&member.identity.client_address),
            state: member.state,
            incarnation: member.incarnation,
            placed: member.placed,
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
            .filter_map(|member| Some((self.number(&member.identity.id)?, Node::from(member))))
            .collect();
        let parts = Parts {
            version: membership.version(),
            me,
            nodes,
            replication: self.replication,
            virtual_nodes: self.virtual_nodes,
            joined: membership.joined(),
        };
        View::new(parts, placements)
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
        u16::try_from(index).ok().map(NodeIx)
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
    version: u64,
    me: NodeIx,
    joined: bool,
    solo: bool,
    nodes: Vec<Option<Node>>,
    replication_wanted: usize,
    virtual_nodes: u32,
    replication: usize,
    owners: Box<[NodeIx]>,
}

impl View {
    /// Works out who owns what. Nodes with the same placed members agree.
    pub fn new(parts: Parts, placements: &mut Placements) -> Self {
        let mut placed: Vec<(&str, NodeIx)> = parts
            .nodes
            .iter()
            .filter(|(_, node)| node.placed)
            .map(|(ix, node)| (&*node.id, *ix))
            .collect();
        placed.sort_unstable();
        let ids: Vec<&str> = placed.iter().map(|(id, _)| *id).collect();
        let replication = parts.replication.clamp(1, OWNERS_MAX);
        let table = placements.table(&ids, parts.virtual_nodes, replication);
        let owners = PartitionId::all()
            .flat_map(|partition| table.owners(partition))
            .map(|&index| placed[usize::from(index)].1)
            .collect();
        let replication = table.replication();

        let solo = placed.iter().all(|(_, ix)| *ix == parts.me);
        let mut nodes = Vec::new();
        for (ix, node) in parts.nodes {
            if nodes.len() <= ix.index() {
                nodes.resize_with(ix.index() + 1, || None);
            }
            nodes[ix.index()] = Some(node);
        }
        Self {
            version: parts.version,
            me: parts.me,
            joined: parts.joined,
            solo,
            nodes,
            replication_wanted: parts.replication,
            virtual_nodes: parts.virtual_nodes,
            replication,
            owners,
        }
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
        };
        let parts = Parts {
            version: 0,
            me: NodeIx(0),
            nodes: vec![(NodeIx(0), node)],
            replication,
            virtual_nodes,
            joined: true,
        };
        Self::new(parts, &mut Placements::default())
    }

    /// Grows with every view of one process.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// This node.
    #[inline]
    pub fn me(&self) -> NodeIx {
        self.me
    }

    /// Whether this node has found its cluster; until then it owns nothing surely.
    #[inline]
    pub fn joined(&self) -> bool {
        self.joined
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
        debug_assert_eq!(self.owners.len(), PARTITION_COUNT * self.replication);
        let start = partition.index() * self.replication;
        &self.owners[start..start + self.replication]
    }

    /// Whether this node is among a partition's owners.
    #[inline]
    pub fn owns(&self, partition: PartitionId) -> bool {
        self.solo || self.owners(partition).contains(&self.me)
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
        self.replication_wanted
    }

    /// Points each member has on the ring.
    pub fn virtual_nodes(&self) -> u32 {
        self.virtual_nodes
    }

    /// The ring behind the table: each point with the id of its member.
    pub fn ring(&self) -> Vec<(u64, &str)> {
        let mut ids: Vec<&str> = self
            .nodes()
            .filter(|(_, node)| node.placed)
            .map(|(_, node)| &*node.id)
            .collect();
        ids.sort_unstable();
        Ring::new(&ids, self.virtual_nodes)
            .points()
            .map(|(point, member)| (point, ids[member]))
            .collect()
    }
}
