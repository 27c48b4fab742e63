"""The text of `microdit-sweep --help`."""

HELP = """\
microdit-sweep study=NAME [scale=demo] [key=value ...]   run a study, every trial recorded in MLflow
microdit-sweep plan study=NAME|all|[A,B] [...]           trials, how far they are, what they cost; trains nothing
microdit-sweep status study=NAME [scale=demo]            how far a sweep is, from any shell
microdit-sweep train [key=value ...]                     one run, recorded in experiment microdit/train
microdit-sweep train -m key=a,b seed=0,1 [...]           Hydra's multirun: every combination, as a study of its own
microdit-sweep bench                                     what the queue costs a trial beyond training, and a metric
microdit-sweep config [key=value ...]                    print the complete config.yaml that `microdit train` reads
microdit-sweep relocate [root=runs]                      after runs/ was moved or copied: update the paths in its stores
microdit-sweep ui [port=5000]                            browse the runs

Words of its own:
  study=NAME|FILE.yaml   a study of experiments/study, or a file of yours
  scale=NAME             smoke | demo | gpu | paper (default demo)
  workers=N              trials at a time (default: the GPUs, else the CPU cores)
  launcher=NAME          local | joblib | submitit_local | submitit_slurm | ray (experiments/launcher/; its settings as
                         hydra.launcher.key=value); the same command given again, also elsewhere, adds workers
  workers_per_gpu=N      trials that share a GPU (default 1)
  max_retries=N          further tries of a failed trial where one can help (default 1)
  fail_fast=true         stop at the first failure
  seeds=[0,1]            instead of the study's own
  reuse=false            run again what is finished already
  root=runs              where outputs and the default store lie
  accelerator=h100       plan: reckon time and money on one of experiments/accelerators.yaml
  utilisation=0.35       plan: share of its peak that training reaches
  usd_per_hour=N         plan: what an hour of it costs, instead of the file's price
  measure=false          plan: don't measure training steps on this machine
  tracking_uri=URI       MLflow store (default: MLFLOW_TRACKING_URI, else sqlite under root)
  artifacts_uri=URI      files of new MLflow experiments: a folder or s3://... (default: the server's place for an
                         http:// store, else mlartifacts under root)
  queue_uri=URI          Optuna storage, postgresql://... say (default: OPTUNA_STORAGE, else sqlite under root)
Every other key=value overrides experiments/base.yaml for all arms, e.g. training.steps=3000."""
