"""Two nightly DAGs for Airflow 3: a notebook run by papermill alone, and an experiment run by `qwenlab run`."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.papermill.operators.papermill import PapermillOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

REPO = "/srv/qwenlab"
BIN = f"{REPO}/.venv/bin"
NOTEBOOK = f"{REPO}/notebooks/10_layers.py"
NIGHTS = f"{REPO}/runs/nightly"
NIGHTLY = dict(
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
)

with DAG("qwenlab_notebook", **NIGHTLY):
    # Papermill runs in Airflow's own Python: `kernel_name` is a kernel with qwenlab's Python. Create it once with
    # .venv/bin/python -m ipykernel install --user --name qwenlab
    convert = BashOperator(
        task_id="convert",
        bash_command=f"mkdir -p {NIGHTS} && {BIN}/jupytext --to ipynb {NOTEBOOK} --output {NIGHTS}/10_layers.ipynb",
    )
    layers = PapermillOperator(
        task_id="layers",
        input_nb=f"{NIGHTS}/10_layers.ipynb",
        output_nb=f"{NIGHTS}/10_layers-{{{{ ds }}}}.ipynb",
        parameters={"checkpoint": "toy-dense", "max_tokens": 64},
        kernel_name="qwenlab",
    )
    convert >> layers

with DAG("qwenlab_experiment", **NIGHTLY):
    # A retry, or a cleared task, runs only what the night's store does not have yet.
    run = BashOperator(
        task_id="run",
        bash_command=f"{BIN}/qwenlab run {REPO}/experiments/recall --store {NIGHTS}/{{{{ ds }}}}",
    )
    compare = BashOperator(
        task_id="compare",
        bash_command=f"{BIN}/qwenlab runs diff {NIGHTS}/baseline {NIGHTS}/{{{{ ds }}}} --experiment recall --exit-code",
        retries=0,
    )
    run >> compare
