"""Where tasks meet: the last modules of a network that the gradients of all of them pass through.

Read from the autograd graph of a batch's losses, so it holds for any head and branch, and for what trains just now.
The detector itself (the last row) never counts: there the tasks have outputs of their own.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from models.graph import Detector


def weights_of(row: nn.Module) -> list[nn.Parameter]:
    """A module's weight tensors that learn (no biases, no norms)."""
    return [p for p in row.parameters() if p.ndim > 1 and p.requires_grad]


def reached(loss: Tensor) -> set[int]:
    """ids of the parameters that a loss has a gradient for."""
    found: set[int] = set()
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return found


def rows_by_task(model: Detector, losses: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """{task: rows, the detector's excluded, with weights that its loss has a gradient for}."""
    rows = {i: {id(p) for p in weights_of(row)} for i, row in enumerate(model.model[:-1])}
    found = {}
    for task, loss in losses.items():
        params = reached(loss)
        found[task] = {i for i, own in rows.items() if own & params}
    return found


def last_shared(model: Detector, by_task: Mapping[str, set[int]]) -> list[int]:
    """Rows that all tasks reach and from which none of these rows is reached later: one where the tasks part at one
    place, several where they part at several (the levels of a detector). Empty where the tasks share nothing."""
    shared = set.intersection(*by_task.values())
    above: dict[int, set[int]] = {-1: set()}  # rows each row is computed from
    for i, source in enumerate(model.sources):
        above[i] = {s for s in source if s >= 0}.union(*(above[s] for s in source))
    passed = set().union(*(above[i] for i in shared)) if shared else set()
    return sorted(shared - passed)


def describe(model: Detector, rows: Sequence[int]) -> str:
    """`28 (Conv, 5,376 weights)`, ..."""
    sizes = {i: sum(p.numel() for p in weights_of(model.model[i])) for i in rows}
    return ", ".join(f"{i} ({model.kinds[i]}, {size:,} weights)" for i, size in sizes.items())
