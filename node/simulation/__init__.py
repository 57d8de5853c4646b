"""A swarm of 10 to 1,000 nodes in one process: the protocol cores of real runs on a virtual clock, with real training inside.

What it is for: to try a protocol, a swarm or a disaster on a laptop, and to get the same numbers again. One scenario and one
seed decide everything; the digest of two equal runs is the same, whatever the hash seed of the process.

* What is simulated: `scenario` (the one value that decides all), `assembly` (puts together what it names), `run` (carries it out and ends it), `chance` (random streams).
* The world: `world` (nodes, and the events of their cores), `heap` (the virtual clock), `legs` (training, computed late and together),
  `links` (latency, bandwidth, loss), `speeds` (step times), `views` (who has heard of whom), `collective` (protocols with certified
  rounds, modelled).
* What happens to it: `churn` (nodes that come and go), `disruption` (one blow, and whom it strikes).
* What is measured: `metrics` (points), `contacts` (whether the swarm hangs together), `trace` (everything, as a digest), `records` (the
  file of JSON lines), `series` and `chart` (what `noded plot` draws).
* For people: `command` (what `noded simulate` does), `keys` (where a misplaced one belongs), `progress` (the bar), `summary` (the end as text).
* Training: `engine` (the seam), `engine_numpy` (many small models at once), `engine_torch` (the real task).

Errors: `heap.SimulationFault`, `node.errors.ConfigError` for a scenario, `engine.EngineError`.
"""
