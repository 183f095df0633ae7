import pytest
import torch

from limbeck.distiller import Task
from limbeck.tasks import LabelFree


def test_it_is_a_task() -> None:
    assert isinstance(LabelFree(), Task)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x,), lambda x: [x, None], lambda x: (x, torch.tensor([1, 2]))]
)
def test_only_the_images_of_a_batch_are_read(wrap: object) -> None:
    x = torch.randn(2, 3)
    task = LabelFree(student_input=torch.nn.ReLU(), teacher_input=torch.nn.Tanh())
    batch = wrap(x)
    assert torch.equal(task.student_input(batch), x.relu())
    assert torch.equal(task.teacher_input(batch), x.tanh())
    assert task.target(batch) is None
    assert task.loss(x, batch) is None
    assert task.score(x, batch) == {}
