"""A user's mistake gets a sentence, early, no traceback, and leaves nothing behind."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import call, tree
from jobs import SMALL, run, shell

import lab.bench.__main__
import lab.export
import lab.replay.__main__
import lab.report.__main__
from lab import config, record, train
from lab.errors import UsageError
from lab.record.study import Study, write_study
from lab.report.study import load_study

MICRO = ("model=micro", "hardware=cpu", "hardware.threads=1", "hardware.precision=32-true", "logger=none")
JSONL = ("data=jsonl", "data.path=good.jsonl")
PRETRAINED = ("model=pretrained",)
SVD = ("init=svd", "init.source=teacher")
BESIDE = "hydra/launcher=beside"
STUDY = ("experiment=rank_sweep",)
COMPRESS = ("method=full", "svd_policy=compress")
QUANTILE = ("svd_policy.thresholds=quantile",)
FIFTY = ("schedule.max_epochs=null", "schedule.max_steps=50")
LATE = "svd_policy.schedule=[{step: 50, layers: all, action: compress, rank: 0.5}]"

# Arguments of lab-train beside MICRO, and what the sentence says.
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    # whole numbers
    (("seed=4294967296",), "seed must be at most 4294967295; got 4294967296."),
    (("data_seed=4294967296",), "data_seed must be at most 4294967295; got 4294967296."),
    (("seed=-1",), "seed must be at least 0; got -1."),
    (("data_seed=-1",), "data_seed must be at least 0; got -1."),
    (("seed=99999999999999999999999",), "seed must be at most 4294967295"),
    (("seed=null",), "seed=null is not a whole number."),
    (("seed=1.5",), "seed=1.5 is not a whole number."),
    (("seed=[1,2]",), "seed=[1,2] is not a whole number."),
    (("rank=0",), "rank must be at least 1; got 0."),
    (("rank=null",), "rank=null is not a whole number."),
    (("rank=1e3",), "rank=1e3 is not a whole number."),
    (("rank=",), "rank= is not a whole number."),
    (("rank={a:1}",), "rank={a:1} is not a whole number."),
    (("rank=nan",), "rank=nan is not a whole number."),
    (("rank=true",), "rank=true is not a whole number."),
    (("rank=sixteen",), "rank=sixteen is not a whole number."),
    (("rank=99999999999999999999",), "rank must be at most 2147483647"),
    (("schedule.max_steps=0",), "schedule.max_steps must be at least 1 (or null); got 0."),
    (("schedule.max_steps=nan",), "schedule.max_steps=nan is not a whole number or null."),
    (("schedule.max_steps=99999999999999999999",), "schedule.max_steps must be at most 2147483647"),
    (("schedule.max_epochs=99999999999999999999",), "schedule.max_epochs must be at most 2147483647"),
    (("schedule.batch_size=99999999999999999999",), "schedule.batch_size must be at most 1048576"),
    (("schedule.batch_size=0",), "schedule.batch_size must be at least 1; got 0."),
    (("schedule.warmup_steps=-1",), "schedule.warmup_steps must be at least 0; got -1."),
    (("hardware.threads=100000",), "hardware.threads must be at most 1024; got 100000."),
    (("hardware.num_workers=-1",), "hardware.num_workers must be at least 0; got -1."),
    (("hardware.devices=100000", "schedule.batch_size=100000"), "hardware.devices must be at most 1024"),
    (("hardware.devices=auto",), "hardware.devices=auto is not a whole number."),
    (("hardware.devices=3",), "nearest batch sizes are 15 or 18"),
    (("hardware.micro_batch_size=-3",), "hardware.micro_batch_size must be at least 1 (or null); got -3."),
    (("evidence.num_examples=0",), "evidence.num_examples must be at least 1"),
    (("evaluate.num_samples=99999999999999999999",), "evaluate.num_samples must be at most 2147483647"),
    (("optim.lr_width=0",), "optim.lr_width must be at least 1 (or null); got 0."),
    # floats: every one refuses NaN and infinity, see below
    (("optim.lr=0",), "optim.lr must be above 0; got 0.0."),
    (("optim.lr=1e400",), "optim.lr must be above 0 and finite; got inf."),
    (("optim.lr=fast",), "optim.lr=fast is not a number or null."),
    (("optim.lr=[1e-3]",), "optim.lr=[1e-3] is not a number or null."),
    (("optim.embedding_lr=-1",), "optim.embedding_lr must be above 0 (or null); got -1.0."),
    (("optim.momentum=2",), "optim.momentum must be at least 0 and below 1; got 2.0."),
    (("optim.betas=[0.9]",), "optim.betas must be two numbers from 0 to below 1"),
    (("optim.betas=[nan,1]",), "optim.betas must be two numbers from 0 to below 1"),
    (("optim.betas=0.9",), "optim.betas=0.9 is not a list, each of which is a number."),
    (("optim.betas={a:1}",), "optim.betas={a:1} is not a list, each of which is a number."),
    (("adapter.dropout=-0.1",), "adapter.dropout must be at least 0 and below 1; got -0.1."),
    # choices, text, maps
    (("method=qlora",), "method=qlora is not one of lora, full; did you mean lora?"),
    (("schedule.lr_scheduler=",), "schedule.lr_scheduler= is not one of linear, cosine, constant, warmdown."),
    (("hardware.precision=16",), "hardware.precision=16 is not one of auto"),
    (("-m", "seed=1,2", BESIDE, "hydra.launcher.n_jobs=0"), "hydra.launcher.n_jobs=0 is no number of jobs"),
    (("-m", "seed=1,2", BESIDE, "hydra.launcher.n_jobs=-3"), "hydra.launcher.n_jobs=-3 is no number of jobs"),
    (("-m", "seed=1,2", BESIDE, "hydra.launcher.n_jobs=two"), "hydra.launcher.n_jobs=two is no number of jobs"),
    ((BESIDE, "hydra.launcher.n_jobs=two"), "hydra.launcher.n_jobs=two is no number of jobs"),
    (("study_budget=0",), "study_budget must be at least 1 (or null); got 0."),
    (("experiment=rank_sweep", "study_budget=30"), "a budget of 30 seeds cannot be kept"),
    (("study_size=huge",), "study_size=huge is not one of quick, default, full."),
    (("adapter.use_dora=maybe",), "adapter.use_dora=maybe is not true or false."),
    (("hardware.deterministic=perhaps",), "hardware.deterministic=perhaps is not true or false."),
    (("deterministic=true",), "there is no key deterministic; did you mean hardware.deterministic?"),
    (("full_determinism=true",), "there is no key full_determinism; did you mean hardware.deterministic?"),
    (("adapter.target_modules=null",), "adapter.target_modules=None is neither a regular expression nor a list"),
    (("adapter.target_modules={a:1}",), "is neither a regular expression nor a list"),
    (("evaluate.prompts=hi",), "evaluate.prompts=hi is not a list, each of which is text."),
    (("evaluate.prompts=[{a:1}]",), "is no list of texts"),
    (("study=[a]",), "study=[a] is not text or null."),
    (("schedule=fast",), "schedule=fast is not a value but a group of keys: schedule.max_epochs,"),
    (("evaluate=null",), "evaluate=null is not a value but a group of keys"),
    (("metrics=3",), "metrics is a map, which takes a name at a time: +metrics.NAME=…"),
    (("metrics={m:3}",), "metrics is a map, which takes a name at a time: +metrics.NAME=…"),
    (("svd_policy=observe", "svd_policy.k=0"), "svd_policy.k=0 is too small"),
    (("svd_policy._target_=lab.init.svd.Svd",), "lab.init.svd.Svd"),
    (("svd_policy=phase1", "svd_policy.layers_per_tick=0"), "svd_policy.layers_per_tick=0 is no share of the layers"),
    (("svd_policy=observe", "svd_policy.layers_per_tick=nan"), "svd_policy.layers_per_tick=nan is no share"),
    ((*COMPRESS, "svd_policy.outside_low=1.5"), "svd_policy.outside_low=1.5 is not below outside_high=1.4"),
    ((*COMPRESS, "svd_policy.ranks=[0.4,1.5]"), "svd_policy.ranks=1.5 is no rank; give a whole number"),
    ((*COMPRESS, *FIFTY), "svd_policy.warmup_steps=100 is not before the run's end, step 50"),
    ((*COMPRESS, "svd_policy.trial_jump=nan"), "svd_policy.trial_jump=nan is not finite; give a number"),
    ((*COMPRESS, "svd_policy.thresholds=chance"), "svd_policy.thresholds='chance' is none of fixed, null, quantile"),
    ((*COMPRESS, *QUANTILE, "svd_policy.warmup_steps=60"), "with every_n_steps=20 holds 3 ticks; make it at least 81"),
    ((*COMPRESS, "svd_policy.thresholds=target"), "svd_policy.observed_path names none"),
    ((*COMPRESS, "svd_policy.thresholds=target", "svd_policy.observed_path=gone"), "gone holds no ledger"),
    (("method=full", "svd_policy=guard", "svd_policy.attack_lift=inf"), "svd_policy.attack_lift=inf is not finite"),
    (("method=full", "svd_policy=grow", "svd_policy.low_until=1.2"), "low_until=1.2 are no window inside the run"),
    (("method=full", "svd_policy=grow", "svd_policy.rank=0"), "svd_policy.rank=0 is no rank"),
    (("method=full", "svd_policy=grow", *FIFTY, "svd_policy.low_until=0.105"), "are both step 5 of 50"),
    (("method=full", "svd_policy=random", "svd_policy.rank=none"), "svd_policy.rank='none' is no rank"),
    (("method=full", "svd_policy=scheduled", *FIFTY, LATE), "svd_policy.schedule[0].step=50 is not before"),
    (("svd_policy=observe", "svd_policy.engine=fast"), "svd_policy.engine='fast' is none of warm, exact."),
    (("evaluate.test=maybe",), "evaluate.test=maybe is not true or false."),
    (("method=full", "init=svd"), "method=full with init._target_=lab.init.svd.Svd is refused"),
    # keys and options that do not exist
    (("lr=2e-4",), "there is no key lr; did you mean optim.lr?"),
    (("batch_size=4",), "there is no key batch_size; did you mean schedule.batch_size?"),
    (("dropout=0.1",), "there is no key dropout; did you mean adapter.dropout?"),
    (("precision=32-true",), "there is no key precision; did you mean hardware.precision?"),
    (("max_steps=5",), "there is no key max_steps; did you mean schedule.max_steps?"),
    (("warmup=3",), "there is no key warmup; did you mean schedule.warmup_steps,"),
    (("epochs=3",), "there is no key epochs; did you mean schedule.max_epochs?"),
    (("learning_rate=1e-4",), "there is no key learning_rate; did you mean optim.lr?"),
    (("lora_alpha=16",), "there is no key lora_alpha; did you mean alpha?"),
    (("optim.lrr=1",), "there is no key optim.lrr; did you mean optim.lr"),
    (("init=svd", "init.siz=1"), "there is no key init.siz; did you mean init.size?"),
    (("init.scheme=x",), "there is no key init.scheme; init has distribution, filled, gain."),
    (("rnak=3",), "there is no key rnak; did you mean rank?"),
    (("rank.x=1",), "there is no key rank.x: rank is a whole number and holds no x."),
    (("+foo=1",), "Unknown key 'foo'"),
    (("init=svdd",), "init=svdd is no option; did you mean svd?"),
    (("logger=nope",), "logger=nope is no option; did you mean none? There are none, tensorboard, wandb."),
    (("hardware=null",), "hardware=null is no option. There are a100x8, auto, cpu, cpu_ddp2, gpu."),
    (("data=",), "data= is no option. There are alpaca,"),
    (("hydra/launcher=nope",), "hydra/launcher=nope is no option."),
    (("experiment=rank_swep",), "swep is no option; did you mean rank_sweep, rank_sweep_smollm2, rank_strategies?"),
    (("~rank",), "rank was taken away and every run has one; leave out ~rank."),
    (("~seed",), "seed was taken away and every run has one; leave out ~seed."),
    (("~schedule",), "schedule was taken away"),
    # Hydra's grammar and options
    (("rank=[1",), "cannot read the overrides"),
    (("rank",), "cannot read the overrides: Error parsing override 'rank'; write KEY=VALUE"),
    (("rank =3",), "cannot read the overrides"),
    (("=1",), "cannot read the overrides: '=1' names no key."),
    (("--rank=3",), "unrecognized arguments: --rank=3; an override has no dashes, as in rank=8"),
    (("--cfg", "nope"), "invalid choice: 'nope'"),
    (("--cfg", "job", "--run"), "Only one of --run, --multirun, --cfg"),
    (("--config-dir=nowhere",), "nowhere' not found"),
    (("--config-dir=afile",), "afile' not found"),
    (("--config-name=nope",), "Cannot find primary config 'nope'."),
    (("rank=1,2",), "Ambiguous value for argument 'rank=1,2'"),
    (("rank=${nope}",), "rank: Interpolation key 'nope' not found."),
    (("rank=${oc.env:LAB_UNSET}",), "rank: Environment variable 'LAB_UNSET' not found."),
    (("rank=${method}",), "rank: Value 'lora' of type 'str' could not be converted to Integer."),
    # sweeps that could not run a single job
    (("-m", "rank=0"), "rank must be at least 1; got 0."),
    (("rank=0,-1", "-m", "seed=1,2"), "rank must be at least 1; got 0."),
    (("rank=4,8", "-m", "seed=x,1"), "seed=x is not a whole number."),
    (("-m", "rank=interval(1,2)"), "BasicSweeper does not support sweep type"),
    (("-m", "rank=4,8", "hydra.sweep.dir=afile"), "afile is none; choose another place."),
    (("-m", "rank=4", "hydra/launcher=slurm"), "this machine has no Slurm"),
    (
        (*STUDY, "seed=4294967292,4294967293,4294967294,4294967295"),
        "arm r64 of rank_sweep cannot run: seed must be at most 4294967295; got 4294968295.",
    ),
    ((*STUDY, "seed=-7"), "seeds [-7] and tuning seeds [0] must be distinct and some, from 0 on."),
    ((*STUDY, "rank=0"), "arm rank=0 of rank_sweep cannot run: rank must be at least 1; got 0."),
    ((*STUDY, "optim.lr=-1"), "learning rates [-1.0] of r64 must be positive"),
    ((*STUDY, "init=svd,pissa"), "init=svd,pissa is a list over no axis of rank_sweep"),
    ((*STUDY, "hydra.sweep.dir=afile/below"), "afile is none; choose another place."),
    # paths
    (("hydra.run.dir=afile",), "hydra.run.dir=afile cannot be a folder"),
    (("hydra.run.dir=afile/below",), "cannot be a folder"),
    (("hydra.run.dir=/dev/null/x",), "/dev/null is none"),
    (("hydra.run.dir=/proc/x/y",), "hydra.run.dir=/proc/x/y cannot be made: No such file or directory"),
    (("hydra.run.dir=" + 300 * "a",), "cannot be made: File name too long"),
    (("hydra.run.dir=",), "hydra.run.dir= is an empty path"),
    (("hydra.run.dir=${nope}",), "hydra.run.dir: Interpolation key 'nope' not found."),
    (("hydra.run.dir=holds${x}",), "has ${ in its name, which Hydra reads as a reference; rename it."),
    (("hydra.run.dir=caf\udce9",), "is not valid UTF-8"),
    (("data=jsonl",), "data=jsonl needs a file; set data.path=FILE"),
    (("data=jsonl", "data.path="), "data.path= is an empty path"),
    (("data=jsonl", "data.path=''"), "data.path is empty text, which is no path"),
    ((*JSONL, "data.test_path=''"), "data.test_path is empty text, which is no path"),
    (("data=jsonl", "data.path=nope(1).jsonl"), "nope(1).jsonl (paths are relative to the invoking directory)"),
    (("data=jsonl", "data.path=emptydir"), "holds no .jsonl file"),
    (("data=jsonl", "data.path=[good.jsonl]"), "good.jsonl'] is not text or null."),
    ((*JSONL, "data.prompt_field=nope"), "has no field 'nope'"),
    ((*JSONL, "data.max_length=null"), "data.max_length=None is not a whole number."),
    (("data.retention=stdlib_dogs",), "no data set of the hub (OWNER/NAME:CONFIG:SPLIT); did you mean stdlib_docs"),
    (("data.retention=./nowhere.txt",), "data.retention=/"),
    (("data.retention=emptydir",), "emptydir holds no .txt file"),
    (("data.retention=good.jsonl",), "good.jsonl holds rows, and forgetting is measured on running text"),
    (("data.retention=",), "data.retention= is an empty path"),
    (("data.retention=owner/nope",), "data.retention=owner/nope: data set owner/nope is not in the local cache"),
    (("data.retention=owner/nope/more",), "data.retention=owner/nope/more is no text of the lab"),
    (("data.retention=3",), "data.retention=3 is"),
    ((*JSONL, "data.retention=stdlib_dogs"), "data.retention=stdlib_dogs is no text of the lab"),
    (("data=stdlib_docs", "data.retention=stdlib_dogs"), "data.retention=stdlib_dogs is no text of the lab"),
    (("data=planted", "data.retention=stdlib_dogs"), "data.retention=stdlib_dogs is no text of the lab"),
    (("model.tokenizer_name_or_path=./nowhere",), "/nowhere: there is no such folder; give a folder or a hub name."),
    (("model.tokenizer_name_or_path=emptydir",), "emptydir holds no tokenizer"),
    (("model.tokenizer_name_or_path=afile",), "is a file; give the Hugging Face folder"),
    (PRETRAINED, "model.name_or_path has no value; give it one: model.name_or_path=…"),
    ((*PRETRAINED, "model.name_or_path="), "model.name_or_path= is an empty path"),
    ((*PRETRAINED, "model.name_or_path=null"), "model.name_or_path=None is not text."),
    ((*PRETRAINED, "model.name_or_path=m.gguf"), "is cut short: it ends within the header of a GGUF file; download"),
    ((*PRETRAINED, "model.name_or_path=./m.gguf"), "m.gguf is cut short"),
    ((*PRETRAINED, "model.name_or_path=no.gguf"), "no.gguf: there is no such file; give a GGUF file, a folder or"),
    ((*PRETRAINED, "model.name_or_path=sub/no.GGUF"), "sub/no.GGUF: there is no such file"),
    ((*PRETRAINED, "model.name_or_path=model.safetensors"), "model.safetensors: there is no such file"),
    ((*SVD, "init.teacher=no.gguf"), "no.gguf: there is no such file"),
    ((*PRETRAINED, "model.name_or_path=emptydir"), "holds no config.json"),
    ((*PRETRAINED, "model.name_or_path=owner/nope"), "model owner/nope is not in the local cache"),
    ((*SVD, "init.teacher=./nowhere"), "init.teacher=/"),
    ((*SVD, "init.teacher=m.gguf"), "m.gguf is cut short"),
    (("data=planted", "data.base=./nowhere"), "data.base=/"),
    # classes
    (("data._target_=no.such",), "_target_=no.such cannot be imported (No module named 'no'); mend the path."),
    (("data._target_=lab.data.files.Nope",), "(lab.data.files has no Nope)"),
    (("data._target_=null",), "_target_=None names no class"),
    (("~data._target_",), "_target_=None names no class"),
    (("model._target_=3",), "_target_=3 names no class"),
    (("data._target_=collections.Counter",), "_target_=collections.Counter is no data set: it has no load()."),
    (("model._target_=collections.Counter",), "_target_=collections.Counter is no model: it has no tokenizer()."),
    (("~data.name",), "missing 1 required keyword-only argument: 'name'"),
    (("data._target_=lab.data.hub.Hub",), "got an unexpected keyword argument"),
    (("data.train_examples=abc",), "data.train_examples='abc' is not a whole number."),
    # runs and studies to go on with
    (("hydra.run.dir=run",), "run holds a run of other settings (data.max_length is 128 there and 512 here)"),
    (("hydra.run.dir=run", "rank=8"), "choose another hydra.run.dir, or go on with it by resume=run."),
    (("resume=",), "resume= is an empty path"),
    (("resume=nowhere",), "resume=nowhere is no folder"),
    (("resume=afile",), "resume=afile is no folder"),
    (("resume=emptydir",), "emptydir is no run directory: it holds no result.json."),
    (("resume=study",), "resume=study is a study; go on with it by resume_study=study."),
    (("resume=live",), "resume=live: that run is still live"),
    (("resume=run",), "'model=micro' is not allowed beside it, only hardware"),
    (("+resume=run",), "'model=micro' is not allowed beside it, only hardware"),
    (("resume=old",), "is not allowed beside it"),
    (("resume=run", "resume_study=study"), "resume=run and resume_study=study exclude each other; give one."),
    (("resume_study=",), "resume_study= is an empty path"),
    (("resume_study=nowhere",), "resume_study=nowhere is no study"),
    (("resume_study=afile",), "resume_study=afile is no study"),
    (("resume_study=emptydir",), "resume_study=emptydir is no study"),
    (("resume_study=run",), "resume_study=run is a single run; go on with it by resume=run."),
    (("resume_study=study",), "'model=micro' is not allowed beside it"),
]  # fmt: skip
ALONE = [  # without MICRO, which resume takes from the run
    (("resume=old",), "is not a config that this version reads (warmup: Key 'warmup' not in 'RunConfig')"),
    (("resume=broken",), "is not a config that this version reads (while parsing"),
    (("resume=run", "schedule.max_steps=null"), "schedule.max_steps=null takes the end from a run"),
    (("resume=run", "schedule.max_steps=500"), "only a constant one can be extended"),
    (("resume=run", "hardware.threads=0"), "hardware.threads must be at least 1 (or null); got 0."),
    (("resume=run", "rank=8"), "'rank=8' is not allowed beside it"),
    (("resume_study=torn",), "multirun.yaml is not what Hydra wrote there"),
]
# Whole numbers and numbers of the typed keys, each with a value that no run could use.
FLOATS = (
    *("alpha", "optim.lr", "optim.weight_decay", "optim.eps", "optim.max_grad_norm", "optim.lora_plus_ratio"),
    *(
        "hardware.timeout_s",
        "optim.matrix_lr",
        "optim.embedding_lr",
        "optim.head_lr",
        "optim.momentum",
        "optim.momentum_start",
    ),
    *("adapter.dropout", "evaluate.forgetting_at"),
)
OTHERS = {
    "export": lab.export,
    "replay": lab.replay.__main__,
    "report": lab.report.__main__,
    "bench": lab.bench.__main__,
}
ELSEWHERE = [
    ("export", (), "lab-export: the following arguments are required: RUN, --to; lab-export --help says"),
    ("export", ("run",), "lab-export: the following arguments are required: --to"),
    ("export", ("run", "--to", "out", "--format", "gguf"), "invalid choice: 'gguf'"),
    ("export", ("run", "--to", "out", "--rank", "x"), "invalid int value: 'x'"),
    ("export", ("run", "--to", "out", "--rank", "0"), "--rank must be at least 1; got 0."),
    ("export", ("run", "--to", ""), "an empty path names nothing"),
    ("export", ("run", "--to", "afile"), "--to afile is a file; give a folder"),
    ("export", ("run", "--to", "afile/below"), "is a file, so there can be no folder in it"),
    ("export", ("run", "--to", "run"), "--to run lies in the run's own folder"),
    ("export", ("run", "--to", "out"), "run holds no checkpoints/last.ckpt: it was interrupted before its first one"),
    ("export", ("nowhere", "--to", "out"), "nowhere is no run directory"),
    ("export", ("afile", "--to", "out"), "afile is no run directory"),
    ("export", ("study", "--to", "out"), "study is no run directory"),
    ("export", ("old", "--to", "out"), "is not a config that this version reads (warmup: Key 'warmup'"),
    ("report", (), "the following arguments are required: study; lab-report --help says"),
    ("report", ("nowhere",), "nowhere is no directory"),
    ("report", ("afile",), "afile is no directory"),
    ("report", ("emptydir",), "emptydir holds no run and no study"),
    ("report", ("study", "emptydir"), "emptydir holds no run and no study"),
    ("report", ("run", "--to", "out"), "run is a single run, which is not compared"),
    ("report", ("study", "--to", "afile"), "--to afile cannot be a folder"),
    ("report", ("study", "--nope"), "unrecognized arguments: --nope"),
    ("report", ("edited",), "has unknown fields warmup; was it edited by hand?"),
    ("replay", (), "the following arguments are required: RUN"),
    ("replay", ("nowhere",), "nowhere is no folder"),
    ("replay", ("afile",), "afile is no folder"),
    ("replay", ("run",), "run holds no ledger; run with svd_policy=observe"),
    ("replay", ("run", "--to", "afile"), "--to afile cannot be a folder"),
    ("bench", ("speed",), "invalid choice: 'speed'"),
    ("bench", ("train", "--schemes", "svd"), "--schemes is of the suite init"),
    ("bench", ("train", "--model", "7b"), "invalid choice: '7b'"),
    ("bench", ("train", "--batch", "0"), "'0' is no whole number from 1"),
    ("bench", ("job", "--batch", "8"), "--batch is of the suite train and has no meaning for job"),
    ("bench", ("gpu", "--budget", "soon"), "'soon' is no whole number from 1"),
    ("bench", ("gpu", "--budget", "-1"), "'-1' is no whole number from 1"),
    ("bench", ("init", "--tiny"), "--tiny is of the suite gpu and has no meaning for init"),
    ("bench", ("gpu", "--quick"), "--quick has no meaning for gpu"),
    ("bench", ("train", "--to", "afile"), "--to afile is no folder."),
]
# What only the running job can see: the run has begun, and its record says how it ended.
LATE = [
    (("init._target_=no.such",), "_target_=no.such cannot be imported (No module named 'no'); mend the path."),
    (("~init._target_",), "_target_=None names no class"),
    (("init=svd", "init.size=nan"), "init.size=nan is not a positive number"),
    (("init=svd", "init.source=teacher"), "name it: init.teacher=DIR."),
    (("rank_strategy._target_=no.such",), "_target_=no.such cannot be imported"),
    (("adapter.target_modules='(['",), "is no regular expression"),
    (("rank=40",), "rank=40 is larger than the smaller side of"),
    (("model.architecture.model_type=nope",), "is not among transformers' types"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A user's folder with one of each thing that may be named by mistake, and a run that is live."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "afile").write_text("x")
    (folder / "m.gguf").write_bytes(b"GGUF")
    (folder / "emptydir").mkdir()
    (folder / "holds${x}").mkdir()
    (folder / "good.jsonl").write_text("".join(f'{{"prompt": "{i}?", "response": "{i}"}}\n' for i in range(40)))
    for name in ("run", "live", "old", "broken", "edited"):
        (folder / name).mkdir()
        config.save(config.compose(*SMALL), folder / name)
        record.write(folder / name, record.RunRecord(status="interrupted"))
    with (folder / "old/config.yaml").open("a") as file:
        file.write("warmup: 3\n")
    (folder / "broken/config.yaml").write_text("rank: [")
    content = json.loads((folder / "edited/result.json").read_text())
    (folder / "edited/result.json").write_text(json.dumps(content | {"warmup": 3}))
    declared = Study(
        name="mine", question="?", arms={"a": [], "b": []}, baseline="a", contrasts=["b"], margin="1%",
        seeds=[1], twin_seeds=[1001], tune_seeds=[0], learning_rates={"a": [1e-3], "b": [1e-3]},
    )  # fmt: skip
    for name, saved in (("study", "hydra: {overrides: {hydra: [], task: []}}"), ("torn", "hydra: [")):
        (folder / name).mkdir()
        write_study(folder / name, declared)
        (folder / name / "multirun.yaml").write_text(saved)
    with record.lock(folder / "live"):
        yield folder


def refused(main, *arguments, cwd):
    """The sentence of a mistake, after which the user's folder is as it was."""
    before = tree(cwd)
    said = call(main, *arguments, cwd=cwd)
    assert tree(cwd) == before, "something was left behind, or changed"
    return said.sentence


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[" ".join(a)[:60] for a, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(arguments, sentence, here):
    assert sentence in refused(train.main, *MICRO, *arguments, cwd=here)


@pytest.mark.parametrize(("arguments", "sentence"), ALONE, ids=[" ".join(a) for a, _ in ALONE])
def test_a_mistake_beside_resume_changes_no_file_of_the_run(arguments, sentence, here):
    assert sentence in refused(train.main, *arguments, cwd=here)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", FLOATS)
def test_no_number_is_nan_or_infinite(key, value):
    with pytest.raises(config.ConfigError, match=rf"{key} must be .*; got {value}\."):
        config.compose(f"{key}={value}")


def test_every_number_of_the_schema_is_among_them():
    typed = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in config.plain_of(config.RunConfig).items()
        if name not in config.GROUPS or name in ("optim", "hardware")
        for key in (value if isinstance(value, dict) else [name])
    }
    from lab.config.suggest import _kind

    numbers = {key for key in typed if (_kind(key) or "").startswith("a number")}
    assert numbers == set(FLOATS)


def test_no_whole_number_is_beyond_32_bits():
    whole = [key for key in _whole_numbers() if key not in ("seed", "data_seed")]
    assert len(whole) > 15
    for key in whole:
        with pytest.raises(
            config.ConfigError, match=rf"{key} must be at most (2147483647|1048576|1024); got 99999999999"
        ):
            config.compose(f"{key}=99999999999999")


def _whole_numbers():
    from lab.config.suggest import _kind

    plain = config.plain_of(config.compose())
    for name, value in plain.items():
        keys = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
        yield from (key for key in keys if (_kind(key) or "").startswith("a whole number"))


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    ELSEWHERE,
    ids=[f"{c} {' '.join(a)}" for c, a, _ in ELSEWHERE],
)
def test_a_mistake_of_another_command_is_one_sentence_too(command, arguments, sentence, here):
    assert sentence in refused(OTHERS[command].main, *arguments, cwd=here)


@pytest.mark.parametrize(("arguments", "sentence"), LATE, ids=[" ".join(a) for a, _ in LATE])
def test_what_the_running_job_sees_is_one_sentence_and_in_its_record(arguments, sentence, tmp_path):
    said = call(train.main, *MICRO, "data=probability_qa_short", *arguments, "hydra.run.dir=out", cwd=tmp_path)
    assert sentence in said.sentence
    ended = record.read(tmp_path / "out")
    assert ended.status == "failed"
    assert sentence in ended.error["message"]


def test_a_dry_run_writes_nothing(here):
    before = tree(here)
    said = call(train.main, *MICRO, "dry_run=true", cwd=here)
    assert (said.code, said.err) == (0, "")
    assert "dry run: 1 x" in said.out
    assert tree(here) == before


def test_overrides_stand_on_both_sides_of_an_option(tmp_path):
    said = call(
        train.main, *MICRO, "rank=4", "--multirun", "dry_run=true", "seed=1,2", "-cd", str(tmp_path),
        "hydra.sweep.dir=out", cwd=tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.count("dry run: 1 x") == 2


def test_a_name_too_long_for_a_folder_is_said(tmp_path):
    """As Hydra makes of a line of overrides."""
    said = call(
        train.main, *MICRO, "-m", "rank=4", "hydra.sweep.dir=out", f"hydra.sweep.subdir={300 * 'a'}", cwd=tmp_path
    )
    assert "File name too long; choose another place by hydra.run.dir, or of a sweep by" in said.sentence


def test_a_full_disk_where_hydra_writes_is_said(monkeypatch, tmp_path):
    def full(cfg, filename, output_dir):
        raise OSError(28, "No space left on device", str(output_dir / filename))

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    said = call(train.main, *MICRO, cwd=tmp_path)
    assert "No space left on device; choose another place by hydra.run.dir" in said.sentence


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("sweep", [False, True])
def test_a_disk_that_refuses_a_write_is_named_by_the_runs_folder(number, sweep, monkeypatch, tmp_path):
    """A write into a file that is open names none."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lab.train.launch", refuse)
    given = ("-m", "hydra.sweep.dir=out", "rank=4,8") if sweep else ("hydra.run.dir=out",)
    said = call(train.main, *MICRO, *given, cwd=tmp_path)
    place = tmp_path / "out" / "0" if sweep else tmp_path / "out"
    last = said.err.strip().splitlines()[-1]
    assert last.startswith(f"could not write {place}: {os.strerror(number)}; choose another place by hydra.run.dir")

    monkeypatch.setattr("hydra.core.utils._save_config", refuse)
    said = call(train.main, *MICRO, *given, cwd=tmp_path)
    assert said.sentence.startswith(f"could not write to the folder of the run: {os.strerror(number)}; choose another")


IN_PROCESSES = [
    (("init=svdd",), "did you mean svd"),
    (("rank=[1",), "cannot read the overrides"),
    (("rank=sixteen",), "rank=sixteen is not a whole number."),
    (("rank=0",), "rank must be at least 1; got 0"),
    (("hardware=null",), "hardware=null is no option."),
    (("rank=${nope}",), "Interpolation key 'nope' not found"),
    (("data=jsonl", "data.path=nope.jsonl"), "nope.jsonl"),
    (("resume=nowhere",), "resume=nowhere is no folder"),
    (("rank=0", "-m", "seed=0,1"), "rank must be at least 1; got 0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "sentence"), IN_PROCESSES, ids=[a[0][0] for a in IN_PROCESSES])
def test_a_mistake_is_answered_as_a_user_starts_it(arguments, sentence, tmp_path):
    done = shell("model=micro", *arguments, cwd=tmp_path, small=False)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("rank=sixteen",), ("rank=0",)], ids=lambda a: a[0])
def test_help_and_errors_import_nothing_heavy(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lab.train", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(train.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported & {"torch", "lightning", "transformers", "peft", "datasets", "numpy", "matplotlib"}


@pytest.mark.slow
def test_a_hub_name_that_cannot_be_had_is_named_with_the_remedy(tmp_path):
    done = shell("model=smollm2_360m", cwd=tmp_path, small=False)
    assert done.returncode != 0
    assert "HuggingFaceTB/SmolLM2-360M" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_console_without_the_letters_shows_a_mark_instead(tmp_path):
    """A whole run, its report and its card, where the console's encoding is ASCII."""
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    two = ("schedule.max_steps=1", "hardware=cpu_ddp2", "hydra.run.dir=out/größe", "svd_policy=observe")
    done = shell(*two, "svd_policy.every_n_steps=1", cwd=tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
    assert " ? " in done.stdout, "the dots between numbers"
    checkout = str(Path(train.__file__).parent.parent)
    for command in (["lab.report", "out/größe"], ["lab.replay", "out/größe"], ["lab.report", "out"]):
        shown = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": checkout, **ascii_only},
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert shown.stderr == ""
    assert load_study(tmp_path / "out").runs


def test_cuda_asked_for_where_there_is_none(tmp_path):
    import torch

    if torch.cuda.is_available():  # the sentence is for machines without
        return
    with pytest.raises(UsageError, match=r"asks for 1 CUDA device.*use hardware=cpu"):
        run(tmp_path, "hardware.accelerator=gpu")


def test_all_labels_masked(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)masked.*max_length|max_length.*masked"):
        run(tmp_path, "data.max_length=8")


def test_messages_without_a_chat_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path.write_text(
        "".join(
            json.dumps({"messages": [*turns, {"role": "user", "content": str(i)}, *turns[1:]]}) + "\n" for i in range(9)
        )
    )
    small = [
        "model=micro",
        "data=jsonl",
        f"data.path={path}",
        "data.messages_field=messages",
        "logger=none",
        "hardware=cpu",
    ]
    from lab.launch import job

    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="chat template"):
        job.launch(config.compose(*small), tmp_path / "run", {}, small, alone=False)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "hydra.run.dir=somewhere/run cannot be written" in refused(
        train.main, *MICRO, "hydra.run.dir=somewhere/run", cwd=tmp_path
    )


@pytest.mark.slow
def test_a_multirun_tells_of_a_failed_job_and_runs_the_rest(tmp_path):
    began = time.monotonic()
    done = shell(
        "rank=4,40", "hydra.sweep.dir=out", "schedule.max_steps=1", "evaluate.accuracy=false", "-m", cwd=tmp_path
    )
    assert done.returncode != 0
    assert "rank=40 is larger than the smaller side" in done.stderr
    statuses = {number: record.read(tmp_path / "out" / number).status for number in ("0", "1")}
    assert statuses == {"0": "completed", "1": "failed"}, (statuses, time.monotonic() - began)
