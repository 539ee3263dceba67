//! What concurrent clients of real nodes see while nodes crash, hang and come back:
//! the promises of docs/consistency.md, checked on the history.

#![allow(missing_docs)]

#[path = "support/clients.rs"]
mod clients;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/history.rs"]
mod history;
#[path = "support/node.rs"]
mod node;

use clients::Load;
use cluster::{API, Cluster};
use history::{Done, Request};

const NODES: usize = 5;
const LOAD: Load = Load {
    clients: 6,
    keys: 6,
};
/// Requests from one disturbance to the next.
const STEP: usize = 1_500;

#[test]
fn no_promise_is_broken_while_nodes_crash_hang_and_come_back() {
    let mut cluster = Cluster::start(NODES, &[]);
    let addresses = cluster.addresses(API);
    let history = LOAD.record(&addresses, |clients| {
        clients.finish(STEP);
        for round in 0..3 {
            let (crashed, hung) = (round, round + 1);
            cluster.kill(crashed);
            clients.finish(STEP);
            cluster.launch(crashed);
            cluster.settle();
            clients.finish(STEP);
            // A node that hangs answers nobody.
            clients.avoid(hung);
            cluster.node(hung).signal(libc::SIGSTOP);
            clients.finish(STEP);
            cluster.node(hung).signal(libc::SIGCONT);
            clients.avoid_nobody();
            cluster.settle();
        }
        clients.finish(STEP);
    });
    LOAD.check(&cluster, &history);
    for key in 0..LOAD.keys {
        let (failed, done): (Vec<&Request>, Vec<&Request>) = history
            .iter()
            .filter(|request| request.key == key)
            .partition(|request| request.result == Some(Done::Failed));
        let (failed, done) = (failed.len(), done.len());
        assert!(done > failed, "key {key}: {done} done, {failed} failed");
    }
}
