"""Topology from trees as machines of several shapes show them in sysfs."""

from __future__ import annotations

from pathlib import Path

from hearthd.daemon import topology


def tree(root: Path, nodes, cores, *, distances=None, memory=None, online=None, affinity=None, mems=None) -> Path:
    """Write what the kernel shows. nodes: {number: cpulist text}; cores: list of tuples of siblings; memory: {number:
    GiB}, 64 by default."""
    system = root / "sys/devices/system"
    cpus = sorted(cpu for core in cores for cpu in core)

    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    put(system / "cpu/online", online or f"0-{cpus[-1]}")
    numbers = ",".join(map(str, nodes))
    put(system / "node/online", numbers)
    for core in cores:
        for cpu in core:
            put(system / f"cpu/cpu{cpu}/topology/thread_siblings_list", ",".join(map(str, core)))
    for at, (number, text) in enumerate(nodes.items()):
        folder = system / f"node/node{number}"
        put(folder / "cpulist", text)
        kib = (memory or {}).get(number, 64) << 20
        put(folder / "meminfo", f"Node {number} MemTotal: {kib} kB\nNode {number} MemFree: {kib // 2} kB\n"
            f"Node {number} FilePages: {kib // 4} kB\nNode {number} Shmem: 1024 kB")  # fmt: skip
        row = (distances or [[10 if a == b else 21 for b in nodes] for a in nodes])[at]
        put(folder / "distance", " ".join(map(str, row)))
    lines = [f"Cpus_allowed_list:\t{affinity}"] if affinity else []
    lines += [f"Mems_allowed_list:\t{mems}"] if mems else []
    put(root / "proc/self/status", "\n".join(["Name:\thearthd", *lines]))
    return root


def siblings_last(cores: int) -> list[tuple[int, int]]:
    return [(c, c + cores) for c in range(cores)]


def test_two_sockets_with_siblings_numbered_last(tmp_path):
    machine = topology.read(tree(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15"}, siblings_last(8)))
    assert [node.number for node in machine.nodes] == [0, 1]
    assert machine.nodes[1].cores == ((4, 12), (5, 13), (6, 14), (7, 15))
    assert machine.nodes[0].distances == {0: 10, 1: 21}
    assert machine.nodes[0].memory == 64 << 30
    assert machine.nodes[0].free == (48 << 30) - (1 << 20)
    assert machine.cores == machine.threads == 8
    assert machine.teams() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # More threads than cores: then siblings, and beyond those nothing to pin to.
    assert machine.teams(12) == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 12, 13]]
    assert machine.teams(18)[0] == [0, 1, 2, 3, 8, 9, 10, 11, -1]
    assert machine.one_team(3) == [0, 1, 2]


def test_two_sockets_with_alternating_numbers(tmp_path):
    cores = [(0, 4), (1, 5), (2, 6), (3, 7)]
    machine = topology.read(tree(tmp_path, {0: "0,2,4,6", 1: "1,3,5,7"}, cores))
    assert machine.teams() == [[0, 2], [1, 3]]


def test_siblings_side_by_side(tmp_path):
    machine = topology.read(tree(tmp_path, {0: "0-3", 1: "4-7"}, [(0, 1), (2, 3), (4, 5), (6, 7)]))
    assert machine.teams() == [[0, 2], [4, 6]]


def test_sub_numa_clusters(tmp_path):
    near = [[10, 12, 21, 21], [12, 10, 21, 21], [21, 21, 10, 12], [21, 21, 12, 10]]
    nodes = {0: "0-1", 1: "2-3", 2: "4-5", 3: "6-7"}
    machine = topology.read(tree(tmp_path, nodes, [(c,) for c in range(8)], distances=near))
    assert machine.teams() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert machine.nodes[2].distances == {0: 21, 1: 21, 2: 10, 3: 12}
    # Fewer threads than nodes: some nodes get no team.
    assert machine.teams(3) == [[0], [2], [4]]
    assert machine.team_nodes(3) == [0, 1, 2]


def test_a_node_without_memory_borrows_from_the_nearest(tmp_path):
    near = [[10, 21, 12], [21, 10, 20], [12, 20, 10]]
    nodes = {0: "0-1", 1: "2-3", 2: "4-5"}
    machine = topology.read(tree(tmp_path, nodes, [(c,) for c in range(6)], distances=near, memory={2: 0}))
    assert machine.teams() == [[0, 1], [2, 3], [4, 5]]
    assert [machine.home(k) for k in range(3)] == [0, 1, 0]


def test_a_node_of_memory_alone_gets_no_team(tmp_path):
    machine = topology.read(tree(tmp_path, {0: "0-1", 2: ""}, [(0,), (1,)], distances=[[10, 17], [17, 10]]))
    assert machine.teams() == [[0, 1]]
    assert machine.nodes[1].distances == {0: 17, 2: 10}
    assert not machine.nodes[1].barred


def test_offline_processors_and_one_sibling_of_a_core(tmp_path):
    nodes = {0: "0-3,8-11", 1: "4-7,12-15"}
    machine = topology.read(tree(tmp_path, nodes, siblings_last(8), online="0-5,8-12"))
    assert machine.teams() == [[0, 1, 2, 3], [4, 5]]
    assert machine.nodes[1].cores == ((4, 12), (5,))


def test_a_cpuset_bounds_processors_and_memory(tmp_path):
    root = tree(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15"}, siblings_last(8), affinity="2-3,10-11", mems="0")
    machine = topology.read(root)
    assert machine.teams() == [[2, 3]]
    assert machine.nodes[1].barred and machine.nodes[1].memory_barred
    assert machine.nodes[1].memory == 0
    assert topology.read(root, allowed=[3, 11, 4]).teams() == [[3], [4]]


def test_quotas_of_cgroups_bound_threads(tmp_path):
    root = tree(tmp_path, {0: "0-7"}, [(c,) for c in range(8)])
    (root / "proc/self/cgroup").write_text("0::/system.slice/hearthd.service\n")
    folder = root / "sys/fs/cgroup/system.slice"
    (folder / "hearthd.service").mkdir(parents=True)
    (folder / "hearthd.service/cpu.max").write_text("max 100000\n")
    for quota, threads in ((350000, 3), (150000, 1), (50000, 1), (200000, 2), (10**7, 8)):
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        assert topology.read(root).threads == threads
    (root / "proc/self/cgroup").write_text("5:cpu,cpuacct:/a\n")
    (root / "sys/fs/cgroup/cpu/a").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us").write_text("200000\n")
    (root / "sys/fs/cgroup/cpu/a/cpu.cfs_period_us").write_text("100000\n")
    machine = topology.read(root)
    assert (machine.quota, machine.threads, machine.cores) == (2.0, 2, 8)


def test_a_kernel_without_numa_is_one_node(tmp_path):
    machine = topology.read(tmp_path, allowed=[0, 1])
    assert [node.cores for node in machine.nodes] == [((0,), (1,))]
    assert machine.teams() == [[0, 1]]
    assert machine.home(0) == 0


def test_balancing_is_seen(tmp_path):
    root = tree(tmp_path, {0: "0"}, [(0,)])
    assert not topology.read(root).balancing
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/numa_balancing").write_text("1\n")
    assert topology.read(root).balancing


def test_this_machine():
    machine = topology.read()
    assert machine.working
    assert sum(len(team) for team in machine.teams()) == machine.threads
