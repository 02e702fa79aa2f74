"""AdaLoRA: stock peft's own ranks and values, one budget, faults that abort, and what is cut is gone."""

from dataclasses import replace

import pytest
import torch
from adapter_models import TOKENS, base, logits
from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model

from lab.adapter.build import build, planned
from lab.adapter.export import export, verify_export
from lab.adapter.initialise import initialise
from lab.adapter.layer import adapted_layers
from lab.adapter.read import read
from lab.adapter.state import adapter_state, load_adapter_state
from lab.adapter.verify import verify
from lab.editors import adalora as module
from lab.editors.adalora import AdaloraEditor
from lab.errors import Mismatch, UsageError
from lab.init.adalora import Triplets
from lab.layer import Evidence, find_targets
from lab.rank_strategy.adalora import Adalora
from lab.rank_strategy.shuffled import Shuffled
from lab.record import RunRecord

STEPS, RANK, SCALING = 12, 2, 1.5
SETTINGS = Adalora(
    start=2.0,
    budget="ranks",
    warmup=0.2,
    settle=0.2,
    every_n_steps=2,
    beta1=0.85,
    beta2=0.85,
    orthogonality=0.5,
)


def adaptive(settings=SETTINGS, name="llama", steps=STEPS):
    """A model at AdaLoRA's step 0, verified, and what keeps its ranks."""
    net = base(name)
    targets = find_targets(net)
    plan = settings.allocate(targets, RANK, {}, {}, torch.Generator())
    structure = planned(targets, plan, scaling=SCALING, values=True)
    model = build(net, structure)
    filled = initialise(model, Triplets(), targets, {}, seed=0)
    verify(model, structure, filled)
    return model.train(), AdaloraEditor(model, targets, settings, RANK, steps)


def train(model, ranks, steps, lr=0.02, optimizer=None):
    """Steps as a run makes them: objective with the regulariser, optimizer, then the ranks."""
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss + ranks.loss_term(1)
        loss.backward()
        optimizer.step()
        ranks.after_step(ranks.done + 1, optimizer)
    return optimizer


def test_ranks_and_values_are_those_of_stock_peft_step_by_step():
    ours, ranks = adaptive()
    stock = get_peft_model(
        base("llama"),
        AdaLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules="all-linear",
            init_r=4,
            target_r=RANK,
            tinit=ranks.schedule.first,
            tfinal=STEPS - ranks.schedule.last,
            deltaT=2,
            beta1=0.85,
            beta2=0.85,
            orth_reg_weight=0.5,
            total_step=STEPS,
            lora_alpha=SCALING * 4,  # peft divides by the first rank
        ),
    ).train()
    with torch.no_grad():
        for name, layer in adapted_layers(ours).items():
            twin = stock.get_base_model().get_submodule(name)
            twin.lora_A["default"].copy_(layer.A)
            twin.lora_B["default"].copy_(layer.B)
    mine = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.02)
    theirs = torch.optim.AdamW([p for p in stock.parameters() if p.requires_grad], lr=0.02)
    for step in range(1, STEPS + 1):
        theirs.zero_grad()
        stock(input_ids=TOKENS, labels=TOKENS).loss.backward()
        theirs.step()
        stock.base_model.update_and_allocate(step)
        train(ours, ranks, 1, optimizer=mine)
        pattern = stock.peft_config["default"].rank_pattern
        assert (ranks.config.rank_pattern is None) == (pattern is None)
        for name, kept in (pattern or {}).items():
            assert ranks.config.rank_pattern[name] == kept
        for name, layer in adapted_layers(ours).items():
            twin = stock.get_base_model().get_submodule(name)
            # peft adds 1e-5 to the rank it divides by; AdamW turns that into 1e-6 of a step of 0.02 and it adds up
            torch.testing.assert_close(layer.E, twin.lora_E["default"], rtol=1e-3, atol=1e-4)
    assert len(set(ranks.ranks().values())) > 1


def test_the_regulariser_is_what_peft_adds_to_its_loss():
    ours, ranks = adaptive()
    stock = get_peft_model(
        base("llama"),
        AdaLoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear", init_r=4, total_step=9),
    )
    for name, layer in adapted_layers(ours).items():
        twin = stock.get_base_model().get_submodule(name)
        twin.lora_A["default"].data.copy_(layer.A)
        twin.lora_B["default"].data.copy_(layer.B)
    with torch.no_grad():  # E is 0, so both compute the base's loss, and peft adds to its own even in an evaluation
        added = stock(input_ids=TOKENS, labels=TOKENS).loss - ours(input_ids=TOKENS, labels=TOKENS).loss
        torch.testing.assert_close(added, 0.5 * ranks.orthogonality(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", ["params", "ranks"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_cut_meets_the_schedule_and_the_end_is_the_budget_of_uniform(name, budget):
    model, ranks = adaptive(replace(SETTINGS, budget=budget), name)
    seen = []
    optimizer = None
    for step in range(1, STEPS + 1):
        optimizer = train(model, ranks, 1, optimizer=optimizer)
        if ranks.schedule.cuts(step):
            left = sum(ranks.costs[name] * rank for name, rank in ranks.ranks().items())
            assert 0 <= ranks.schedule.budget(step) - left < max(ranks.costs.values())
            seen.append(left)
    ranks.finish(RunRecord())
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 2
    asked = RANK * sum(ranks.costs.values())
    assert 0 <= asked - seen[-1] < max(ranks.costs.values())


def test_with_start_at_the_rank_nothing_is_cut():
    model, ranks = adaptive(replace(SETTINGS, start=1.0))
    train(model, ranks, STEPS)
    ranks.finish(RunRecord())
    assert set(ranks.ranks().values()) == {RANK}


def leave_one_uncut(monkeypatch, ranks):
    """The layer that loses most by the first cut is not reached by it."""
    real = module._Parameters.named_parameters
    victim = next(iter(ranks.layers))

    def one_is_a_copy(self):
        for name, parameter in real(self):
            out_of_reach = name == f"{victim}.lora_E.default" and not self.copy_values
            copy = parameter.detach().clone() if out_of_reach else parameter
            if out_of_reach:
                copy.grad = parameter.grad
            yield name, copy

    monkeypatch.setattr(module._Parameters, "named_parameters", one_is_a_copy)
    return victim


def test_a_layer_that_a_cut_does_not_reach_aborts_and_is_named(monkeypatch):
    model, ranks = adaptive(replace(SETTINGS, start=6.0))  # so that every layer loses something
    victim = leave_one_uncut(monkeypatch, ranks)
    with pytest.raises(Mismatch, match=rf"{victim}: the rank is 12 after step \d+, asked \d+ by AdaLoRA"):
        train(model, ranks, STEPS)


def test_a_layer_that_the_allocator_does_not_see_aborts():
    model, ranks = adaptive()
    victim = next(iter(ranks.layers))
    seen = {name: layer for name, layer in ranks.layers.items() if name != victim}
    ranks.model.layers = seen
    ranks.rankallocator.trial.layers = seen
    with pytest.raises(Mismatch, match=f"{victim} was left out|AdaLoRA left"):
        train(model, ranks, STEPS)


def test_a_budget_other_than_the_scheduled_aborts(monkeypatch):
    model, ranks = adaptive()
    real = module.RankAllocator.budget_schedule

    def generous(self, step):
        budget, masks = real(self, step)
        return budget + 1, masks

    monkeypatch.setattr(module.RankAllocator, "budget_schedule", generous)
    with pytest.raises(Mismatch, match="scheduled for step"):
        train(model, ranks, STEPS)


def test_a_step_without_update_aborts_at_the_next_and_at_the_end():
    model, ranks = adaptive()
    optimizer = train(model, ranks, 3)
    with pytest.raises(Mismatch, match="last updated after step 3, and this is step 5"):
        ranks.after_step(5, optimizer)
    with pytest.raises(Mismatch, match="after 3 of 12 steps"):
        ranks.finish(RunRecord())


def test_gradients_that_are_gone_abort():
    model, ranks = adaptive()
    model.zero_grad()
    with pytest.raises(Mismatch, match=r"q_proj\.lora_A\.default has no gradient"):
        ranks.after_step(1, None)


def test_values_that_are_missing_or_not_zero_at_step_0_are_found():
    model, ranks = adaptive()
    targets = find_targets(base("llama"))
    plan = {target.name: 4 for target in targets}
    filled = initialise(model, Triplets(), targets, {}, seed=0)
    first = ranks.layers[targets[0].name]
    first.E.data[0] = 1
    with pytest.raises(Mismatch, match=f"{targets[0].name}: the number of directions that act is 1, asked 0"):
        verify(model, planned(targets, plan, scaling=SCALING, values=True), filled)
    first.E = None
    with pytest.raises(Mismatch, match="the number of directions that act is None, asked 0"):
        verify(model, planned(targets, plan, scaling=SCALING, values=True), filled)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_what_is_cut_is_gone_from_the_export_and_stock_peft_gives_the_same_logits(name, tmp_path):
    model, ranks = adaptive(replace(SETTINGS, every_n_steps=1), name)
    train(model, ranks, STEPS)
    first = next(iter(ranks.layers))
    ranks.layers[first].E.data.zero_()  # as if AdaLoRA had left it none
    model.eval()
    wrote = export(model, tmp_path)
    plan = {key: rank for key, rank in ranks.ranks().items() if rank}
    assert wrote.ranks == plan
    assert first not in plan
    verify_export(tmp_path, read(model))
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(base(name), tmp_path).eval()
    assert (logits(again) - logits(model)).abs().max() <= 1e-5
    assert (logits(model) - logits(base(name))).abs().max() > 1e-2


def test_the_state_goes_into_a_fresh_model_bit_for_bit(tmp_path):
    model, ranks = adaptive()
    optimizer = train(model, ranks, 5)
    torch.save(
        {"adapter": adapter_state(model), "ranks": ranks.state_dict(), "opt": optimizer.state_dict()}, tmp_path / "c"
    )
    saved = torch.load(tmp_path / "c", weights_only=True)
    train(model, ranks, STEPS - 5, optimizer=optimizer)
    other, others = adaptive()
    load_adapter_state(other, saved["adapter"])
    others.load_state_dict(saved["ranks"])
    twin = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.02)
    twin.load_state_dict(saved["opt"])
    train(other, others, STEPS - 5, optimizer=twin)
    assert others.ranks() == ranks.ranks()
    mine, theirs = adapter_state(model), adapter_state(other)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": "none"}, "neither params nor ranks"),
        ({"start": 0.5}, "ranks only fall"),
        ({"warmup": 0.6, "settle": 0.4}, "leave room for cuts"),
        ({"every_n_steps": 0}, "at least 1"),
        ({"beta2": 1.0}, "between 0 and 1"),
        ({"orthogonality": -1.0}, "must be 0 or more"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        replace(SETTINGS, **change)


def test_it_cannot_be_shuffled():
    with pytest.raises(UsageError, match="known only when its run has ended"):
        Shuffled(of=SETTINGS)


def test_the_product_is_zero_at_step_0_and_both_factors_can_train():
    model, _ranks = adaptive()
    assert torch.equal(logits(model.eval()), logits(base("llama")))
    target = find_targets(base("llama"))[0]
    pair = Triplets().factors(target, torch.zeros(target.shape), 4, 1.0, Evidence(), torch.Generator())
    assert pair.A.std() == pytest.approx(0.02, rel=0.2)  # 128 draws: a standard error of 6 %
    assert pair.B.std() == pytest.approx(0.02, rel=0.2)
