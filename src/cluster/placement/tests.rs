use super::*;

const VIRTUAL_NODES: u32 = 64;

/// Member ids as they are met in the field and some that are drawn, `count`
/// of them; another set for each `seed`.
fn member_ids(seed: usize, count: usize) -> Vec<String> {
    let id = |n: usize| match seed % 4 {
        0 => format!("{:016x}", scramble(seed as u64, n as u64)),
        1 => format!("hypercache-{n}.hypercache-headless.team-{seed}.svc.cluster.local:7946"),
        2 => format!("release{seed}-hypercache-{n}"),
        _ => format!("10.{}.{}.{n}:7946", seed / 256, seed % 256),
    };
    (0..count).map(id).collect()
}

fn table(ids: &[String], replication: usize) -> Table {
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    Table::new(&ids, VIRTUAL_NODES, replication)
}

fn owner_ids<'a>(ids: &'a [String], table: &Table, partition: PartitionId) -> Vec<&'a str> {
    table
        .owners(partition)
        .iter()
        .map(|&owner| ids[usize::from(owner)].as_str())
        .collect()
}

/// Least and greatest of primaries and of owned partitions per member, as
/// parts of the mean.
fn spread(ids: &[String], table: &Table) -> [(f64, f64); 2] {
    let mut held = [vec![0; ids.len()], vec![0; ids.len()]];
    for partition in PartitionId::all() {
        let owners = table.owners(partition);
        held[0][usize::from(owners[0])] += 1;
        owners
            .iter()
            .for_each(|&owner| held[1][usize::from(owner)] += 1);
    }
    held.map(|held| {
        let mean = held.iter().sum::<usize>() as f64 / ids.len() as f64;
        let part = |held: Option<&usize>| held.map_or(0.0, |&held| held as f64 / mean);
        (part(held.iter().min()), part(held.iter().max()))
    })
}

fn assert_spread(sets: usize, members: usize, replication: usize, tolerance: f64) {
    let mut worst = [(1.0_f64, 1.0_f64); 2];
    for seed in 0..sets {
        let ids = member_ids(seed, members);
        let found = spread(&ids, &table(&ids, replication));
        for (worst, (least, most)) in worst.iter_mut().zip(found) {
            *worst = (worst.0.min(least), worst.1.max(most));
            assert!(least >= 1.0 - tolerance, "{least} of the mean for {ids:?}");
            assert!(most <= 1.0 + tolerance, "{most} of the mean for {ids:?}");
        }
    }
    println!("{members} members, {replication} owners: primaries, owned {worst:.3?} of mean");
}

/// Primaries, and places of owners, that `after` has and `before` has not,
/// as parts of all; and the share of partitions where the order of those
/// that own it before and after differs.
fn moved(before: (&[String], &Table), after: (&[String], &Table)) -> [f64; 3] {
    let [mut primaries, mut places, mut reordered] = [0; 3];
    for partition in PartitionId::all() {
        let old = owner_ids(before.0, before.1, partition);
        let new = owner_ids(after.0, after.1, partition);
        primaries += usize::from(old[0] != new[0]);
        places += new.iter().filter(|id| !old.contains(id)).count();
        let stayed = new.iter().filter(|id| old.contains(id));
        reordered += usize::from(!stayed.eq(old.iter().filter(|id| new.contains(id))));
    }
    let all = PARTITION_COUNT as f64;
    let all_places = all * after.1.replication() as f64;
    [
        primaries as f64 / all,
        places as f64 / all_places,
        reordered as f64 / all,
    ]
}

/// Moves between `members` and one more, in both directions, never take more
/// than 1.25 times the share of one member in the larger set.
fn assert_movement(members: usize, replication: usize) {
    let sets = 8;
    let share = 1.0 / (members + 1) as f64;
    let mut sums = [[0.0; 3]; 2];
    for seed in 0..sets {
        let large = member_ids(seed, members + 1);
        let mut small = large.clone();
        small.remove(seed % large.len());
        let (small_table, large_table) = (table(&small, replication), table(&large, replication));
        let (small, large) = ((&small[..], &small_table), (&large[..], &large_table));
        for (sums, moved) in sums
            .iter_mut()
            .zip([moved(small, large), moved(large, small)])
        {
            assert!(
                moved[0] <= 1.25 * share,
                "primaries: {} of {share}",
                moved[0]
            );
            assert!(moved[1] <= 1.25 * share, "owners: {} of {share}", moved[1]);
            assert!(moved[2] <= 0.05, "{} of the partitions reordered", moved[2]);
            sums.iter_mut()
                .zip(moved)
                .for_each(|(sum, moved)| *sum += moved / sets as f64);
        }
    }
    for (what, [primaries, places, reordered]) in ["joins", "leaves"].iter().zip(sums) {
        println!(
            "{members} members, {replication} owners, one {what}: primaries {:.3}, owners \
             {:.3} of its share; {:.2} % reordered",
            primaries / share,
            places / share,
            reordered * 100.0,
        );
    }
}

fn digest(table: &Table) -> u64 {
    let bytes: Vec<u8> = table
        .owners
        .iter()
        .flat_map(|owner| owner.to_le_bytes())
        .collect();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

#[test]
fn the_placement_of_five_members_is_the_same_in_every_release() {
    let table = Table::new(&["a", "b", "c", "d", "e"], VIRTUAL_NODES, 3);
    assert_eq!(digest(&table), 7_888_069_997_277_265_421);
}

/// Of so many members some are held to the bounds on either side.
#[test]
fn the_placement_of_fifty_members_is_the_same_in_every_release() {
    let ids: Vec<String> = (0..50).map(|n| format!("hypercache-{n}")).collect();
    assert_eq!(digest(&table(&ids, 3)), 14_395_929_121_006_648_364);
}

#[test]
fn equally_near_members_come_in_the_order_of_their_ids() {
    let mut ring = Ring::new(&["c", "a", "b"], 1);
    assert_eq!(*ring.index_of, [1, 2, 0]);
    for (place, rank) in ring.points.iter_mut().zip(0..) {
        *place = (1 << 60, rank);
    }
    assert_eq!(nearest_members(&ring, 3), [0, 1, 2].repeat(PARTITION_COUNT));
    assert_eq!(nearest_members(&ring, 2), [0, 1].repeat(PARTITION_COUNT));
}

#[test]
fn every_order_of_the_members_gives_the_same_owners() {
    let ids: Vec<String> = ["d", "a", "e", "b", "c"].map(String::from).into();
    let expected = table(&ids, 3);
    let mut orders = vec![vec![]];
    for id in &ids {
        let longer = orders.iter().flat_map(|order: &Vec<String>| {
            (0..=order.len()).map(|place| {
                let mut order = order.clone();
                order.insert(place, id.clone());
                order
            })
        });
        orders = longer.collect();
    }
    assert_eq!(orders.len(), 120);
    for order in orders {
        let found = table(&order, 3);
        for partition in PartitionId::all() {
            assert_eq!(
                owner_ids(&order, &found, partition),
                owner_ids(&ids, &expected, partition)
            );
        }
    }
}

#[test]
fn owners_are_distinct_and_no_more_than_members() {
    for (members, replication, expected) in [
        (1, 3, 1),
        (2, 3, 2),
        (3, 3, 3),
        (5, 0, 1),
        (5, 4, 4),
        (7, usize::MAX, 7),
        (20, 20, OWNERS_MAX),
        (50, 3, 3),
    ] {
        let table = table(&member_ids(members, members), replication);
        assert_eq!(table.replication(), expected);
        for partition in PartitionId::all() {
            let mut owners = table.owners(partition).to_vec();
            owners.sort_unstable();
            owners.dedup();
            assert_eq!(owners.len(), expected);
            assert!(owners.iter().all(|&owner| usize::from(owner) < members));
        }
    }
}

#[test]
fn no_members_own_nothing() {
    let table = Table::new(&[], VIRTUAL_NODES, 3);
    assert_eq!(table.replication(), 0);
    assert!(PartitionId::all().all(|partition| table.owners(partition).is_empty()));
    assert_eq!(Ring::new(&[], VIRTUAL_NODES).points().count(), 0);
}

#[test]
fn the_ring_is_sorted_and_a_member_keeps_its_points() {
    let points_of = |members: &[&str], id: &str| -> Vec<u64> {
        let ring = Ring::new(members, VIRTUAL_NODES);
        assert!(ring.points().is_sorted());
        assert_eq!(
            ring.points().count(),
            members.len() * VIRTUAL_NODES as usize
        );
        let mine = ring.points().filter(|&(_, index)| members[index] == id);
        mine.map(|(point, _)| point).collect()
    };
    let points = points_of(&["x", "b", "a"], "x");
    assert_eq!(points.len(), VIRTUAL_NODES as usize);
    assert_eq!(points, points_of(&["c", "x"], "x"));
}

#[test]
fn the_short_walk_finds_the_nearest_of_all_members() {
    let ids = member_ids(0, 9);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let ring = Ring::new(&ids, VIRTUAL_NODES);
    for reach in [1, 4, 9] {
        let found = nearest_members(&ring, reach);
        for partition in (0..PARTITION_COUNT).step_by(61) {
            let mut least = vec![(u64::MAX, 0); ids.len()];
            for n in 0..PROBE_COUNT {
                let probe = scramble(PROBE_SEED, (partition * PROBE_COUNT + n) as u64);
                for &(point, rank) in &ring.points {
                    let least = &mut least[usize::from(rank)];
                    *least = (*least).min((point.wrapping_sub(probe), rank));
                }
            }
            least.sort_unstable();
            let expected: Vec<u16> = least.iter().take(reach).map(|&(_, rank)| rank).collect();
            assert_eq!(found[partition * reach..][..reach], expected);
        }
    }
}

#[test]
fn five_members_without_replicas_are_within_ten_percent_of_the_mean() {
    assert_spread(40, 5, 1, 0.10);
}

#[test]
fn five_members_with_replicas_are_within_ten_percent_of_the_mean() {
    assert_spread(200, 5, 3, 0.10);
    for replication in [2, 4, 5] {
        assert_spread(40, 5, replication, 0.10);
    }
}

#[test]
fn the_names_of_a_stateful_set_are_within_ten_percent_of_the_mean() {
    let ids: Vec<String> = (0..5).map(|n| format!("hypercache-{n}")).collect();
    for replication in 1..=5 {
        let found = spread(&ids, &table(&ids, replication));
        println!("hypercache-0..4, {replication} owners: primaries, owned {found:.3?} of mean");
        assert!(
            found
                .iter()
                .all(|&(least, most)| least >= 0.90 && most <= 1.10)
        );
    }
}

#[test]
fn other_numbers_of_members_are_within_fifteen_percent_of_the_mean() {
    for members in [2, 3, 10, 50] {
        for replication in [1, 3] {
            assert_spread(12, members, replication, 0.15);
        }
    }
}

#[test]
fn a_member_that_joins_or_leaves_moves_little_more_than_its_share() {
    for members in [1, 3, 5, 10] {
        for replication in [1, 2, 3] {
            assert_movement(members, replication);
        }
    }
}
