"""Three Ray nodes on one machine, of one CPU each, until standard input is closed: ``python three_nodes.py DIRECTORY PORT PORT``.

Prints {"address": of the head, "raylets": [process of each of the other two nodes]}.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main(directory: str, gcs_port: str, dashboard_port: str) -> None:
    memory = {"object_store_memory": 200 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={
            "num_cpus": 1,
            "gcs_server_port": int(gcs_port),
            "dashboard_port": int(dashboard_port),
            "include_dashboard": True,
            "temp_dir": directory,
            **memory,
        },
    )
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
