//! Before the first step: the pool, and what each of its workers needs.

use std::collections::BTreeMap;

use errback::{Failure, Pool, PythonTask, Reactor, python, set_process_pool};

const LOAD: PythonTask<(BTreeMap<String, u64>,), ()> = python("catalog:load");

pub(crate) fn start(reactor: &Reactor, interpreter: &str, modules: &str) -> Result<(), Failure> {
    let prices = BTreeMap::from([("pear".to_string(), 250), ("fig".to_string(), 40)]);
    let pool = Pool::builder()
        .python("catalog")
        .python_interpreter(interpreter) // or python_venv("venv"), or nothing: python3
        .python_path(modules) // where catalog.py is
        .initializer(LOAD, (prices,)) // once in each worker
        .build()?;
    set_process_pool(reactor, pool)?;
    Ok(())
}
