//! Workers in Python: which interpreter, and how it comes by errback's package.
//!
//! The package is in this program: its sources travel to the interpreter in an environment variable, and one
//! of them makes a package of the others. So a `python3` with `msgpack` is all that has to be there, and host and workers are
//! never of two versions. A variable may have 128 KiB on Linux, whatever the limit of all together; a test keeps the
//! package below.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::builder::Builder;
use super::child::Program;
use crate::error::BuildError;

/// The modules of the package, each with its source.
macro_rules! sources {
    ($($name:literal $file:literal)*) => {
        &[$(($name, include_str!(concat!("../../python/errback_worker/", $file)))),*]
    };
}

const SOURCES: &[(&str, &str)] = sources! {
    "errback_worker" "__init__.py"
    "errback_worker.__main__" "__main__.py"
    "errback_worker._arenas" "_arenas.py"
    "errback_worker._bootstrap" "_bootstrap.py"
    "errback_worker._cancel" "_cancel.py"
    "errback_worker._channel" "_channel.py"
    "errback_worker._failures" "_failures.py"
    "errback_worker._jobs" "_jobs.py"
    "errback_worker._start" "_start.py"
    "errback_worker._tasks" "_tasks.py"
    "errback_worker._values" "_values.py"
    "errback_worker._wire" "_wire.py"
};

/// What the interpreter runs: the one of the sources that makes the package importable, and becomes a worker. In words
/// that every Python understands, and that leave a list of processes readable.
const BOOTSTRAP: &str = r#"import json, os; exec(json.loads(os.environ["ERRBACK_WORKER_SOURCE"])["errback_worker._bootstrap"])"#;

/// The variable in which the sources travel.
const SOURCE_VARIABLE: &str = "ERRBACK_WORKER_SOURCE";

/// Where Python looks for modules first, after the directory that it was started in.
const PATH_VARIABLE: &str = "PYTHONPATH";

/// What a builder was told of Python.
#[derive(Clone, Default, Debug)]
pub(super) struct PythonOptions {
    modules: Vec<String>,
    interpreter: Option<OsString>,
    venv: Option<PathBuf>,
    paths: Vec<PathBuf>,
    arguments: Vec<OsString>,
}

/// Workers in Python.
impl Builder {
    /// Workers in Python, which serve the functions of this module. Called again, they serve those of several.
    ///
    /// The workers import it when they start, and find it as a script would: first in the directory in which they are
    /// started ([`current_dir`](Builder::current_dir)), then in those of [`python_path`](Builder::python_path) and of the
    /// variable `PYTHONPATH`, then among what is installed. Its functions are called by [`python`](crate::python).
    ///
    /// ```no_run
    /// use errback::{Pool, PythonTask, python};
    ///
    /// const RESIZE: PythonTask<(Vec<u8>, u32), Vec<u8>> = python("images:resize");
    ///
    /// let pool = Pool::builder()
    ///     .python("images")
    ///     .python_venv("/srv/images/venv")
    ///     .python_path("/srv/images/lib")
    ///     .build()?;
    /// let small = pool.apply_async(RESIZE, (std::fs::read("big.jpg")?, 100));
    /// # Ok::<(), errback::Failure>(())
    /// ```
    ///
    /// It takes Python 3.9 or later with the package `msgpack`, and nothing of ours: that comes with this program.
    /// What cannot be started fails jobs with [`SpawnFailed`](crate::SpawnFailed), in the interpreter's own words.
    pub fn python(mut self, module: impl Into<String>) -> Self {
        self.python.modules.push(module.into());
        self
    }

    /// The interpreter of [Python workers](Builder::python). Default: that of the virtual environment which is active
    /// (`$VIRTUAL_ENV/bin/python`), or `python3`.
    pub fn python_interpreter(mut self, interpreter: impl Into<OsString>) -> Self {
        self.python.interpreter = Some(interpreter.into());
        self
    }

    /// The virtual environment of [Python workers](Builder::python): its directory, in which there is `bin/python`.
    pub fn python_venv(mut self, directory: impl Into<PathBuf>) -> Self {
        self.python.venv = Some(directory.into());
        self
    }

    /// A directory in which [Python workers](Builder::python) look for modules, before those of `PYTHONPATH`. Called
    /// again, they look in several, in this order.
    pub fn python_path(mut self, directory: impl Into<PathBuf>) -> Self {
        self.python.paths.push(directory.into());
        self
    }

    /// Options for the interpreter of [Python workers](Builder::python), such as `-O` or `-X importtime`.
    ///
    /// With `-I` and `-P` the directory in which workers are started is not searched for modules, with `-I` and `-E`
    /// neither are those of [`python_path`](Builder::python_path).
    pub fn python_args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.python
            .arguments
            .extend(arguments.into_iter().map(Into::into));
        self
    }
}

/// What a builder's options make workers of.
pub(super) fn program(
    python: PythonOptions,
    command: Option<(OsString, Vec<OsString>)>,
) -> Result<Program, BuildError> {
    let refused = |why: &str| Err(BuildError::Options(why.to_string()));
    match command {
        _ if !python.modules.is_empty() => {
            if command.is_some() {
                return refused(
                    "workers are a command or Python modules, not both: python, command",
                );
            }
            Ok(Program::Python(PythonProgram::new(python)?))
        }
        _ if python.is_told_something() => refused(
            "options of an interpreter without a module for it: name one with Builder::python",
        ),
        Some((program, arguments)) => Ok(Program::Command { program, arguments }),
        None => Ok(Program::Own),
    }
}

impl PythonOptions {
    fn is_told_something(&self) -> bool {
        let PythonOptions {
            modules,
            interpreter,
            venv,
            paths,
            arguments,
        } = self;
        !(modules.is_empty() && paths.is_empty() && arguments.is_empty())
            || interpreter.is_some()
            || venv.is_some()
    }
}

/// An interpreter and what it shall serve.
pub(super) struct PythonProgram {
    interpreter: OsString,
    arguments: Vec<OsString>,
    modules: Vec<String>,
    paths: Vec<PathBuf>,
    /// The package, as the variable has it.
    sources: String,
}

impl PythonProgram {
    fn new(options: PythonOptions) -> Result<PythonProgram, BuildError> {
        if let Some(module) = options.modules.iter().find(|module| !is_module(module)) {
            return Err(BuildError::Options(format!(
                "`{module}` is not the name of a Python module: write `images.resize` for images/resize.py, and say with \
                 Builder::python_path where that is"
            )));
        }
        let interpreter = match (options.interpreter, options.venv) {
            (Some(_), Some(_)) => {
                return Err(BuildError::Options(
                    "an interpreter and a virtual environment, which has one: python_interpreter, python_venv"
                        .to_string(),
                ));
            }
            (Some(interpreter), None) => interpreter,
            (None, Some(venv)) => venv.join("bin/python").into(),
            (None, None) => default_interpreter(),
        };
        Ok(PythonProgram {
            interpreter,
            arguments: options.arguments,
            modules: options.modules,
            paths: options.paths,
            sources: json_of(SOURCES),
        })
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> String {
        let modules = self.modules.join(", ");
        format!("{} ({modules})", self.interpreter.to_string_lossy())
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.interpreter);
        command
            .args(&self.arguments)
            .args(["-c", BOOTSTRAP])
            .args(&self.modules);
        command
    }

    /// What goes into the environment, above all that is there by now; `inherited` says whether the host's own is.
    pub(super) fn extend_environment(&self, command: &mut Command, inherited: bool) {
        command.env(SOURCE_VARIABLE, &self.sources);
        if self.paths.is_empty() {
            return;
        }
        let told = command.get_envs().find(|(name, _)| *name == PATH_VARIABLE);
        let path = match told {
            Some((_, value)) => value.map(OsString::from),
            None if inherited => env::var_os(PATH_VARIABLE),
            None => None,
        };
        let mut all = OsString::new();
        let before = self.paths.iter().map(|path| path.as_os_str());
        for part in before.chain(path.as_deref().filter(|path| !path.is_empty())) {
            if !all.is_empty() {
                all.push(":");
            }
            all.push(part);
        }
        command.env(PATH_VARIABLE, all);
    }
}

fn default_interpreter() -> OsString {
    match env::var_os("VIRTUAL_ENV").filter(|venv| !venv.is_empty()) {
        Some(venv) => PathBuf::from(venv).join("bin/python").into(),
        None => "python3".into(),
    }
}

/// Whether this is the name of a module and not of a file or a function. Python knows the rest.
fn is_module(name: &str) -> bool {
    let refused = |c: char| c.is_whitespace() || matches!(c, ':' | '/' | '\0');
    !name.starts_with('-')
        && !name.ends_with(".py")
        && !name.contains(refused)
        && name.split('.').all(|part| !part.is_empty())
}

/// A JSON object of strings.
fn json_of(texts: &[(&str, &str)]) -> String {
    let mut json = String::from("{");
    for (name, text) in texts {
        if json.len() > 1 {
            json.push(',');
        }
        push_json(&mut json, name);
        json.push(':');
        push_json(&mut json, text);
    }
    json.push('}');
    json
}

fn push_json(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\n' => json.push_str("\\n"),
            '\0'..='\x1f' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn refusal(builder: Builder) -> String {
        match builder.build() {
            Err(BuildError::Options(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_that_do_not_fit_together_are_refused() {
        let builder = Builder::new;
        let both = refusal(builder().python("m").command("cat", [""; 0]));
        assert!(both.contains("not both"), "{both}");
        let two = builder()
            .python("m")
            .python_interpreter("python3")
            .python_venv("venv");
        assert!(refusal(two).contains("python_venv"));
        for none in [
            builder().python_args(["-O"]),
            builder().python_path("lib"),
            builder().python_venv("venv"),
            builder().python_interpreter("python3"),
            builder().python_path("lib").command("cat", [""; 0]),
        ] {
            assert!(refusal(none).contains("Builder::python"));
        }
    }

    #[test]
    fn a_module_is_no_file_and_no_function() {
        for wrong in ["", "fib.py", "lib/fib", "fib:fib", "a..b", "-c", "a b"] {
            let why = refusal(Builder::new().python(wrong));
            assert!(why.contains("Python module"), "{wrong}: {why}");
        }
        assert!(is_module("a.b_1") && is_module("größe"));
    }

    #[test]
    fn the_whole_package_travels_and_fits() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/errback_worker");
        let mut files = BTreeMap::new();
        for file in std::fs::read_dir(package).expect("the package") {
            let path = file.expect("a file").path();
            if path.extension().is_none_or(|extension| extension != "py") {
                continue;
            }
            let name = match path.file_stem().and_then(|stem| stem.to_str()) {
                Some("__init__") => "errback_worker".to_string(),
                stem => format!("errback_worker.{}", stem.expect("a name")),
            };
            files.insert(name, std::fs::read_to_string(path).expect("a source"));
        }
        let sources = json_of(SOURCES);
        let read: BTreeMap<String, String> = serde_json::from_str(&sources).expect("JSON");
        assert_eq!(read, files);
        assert!(sources.len() < 120 << 10, "{} bytes", sources.len());
        assert!(BOOTSTRAP.contains(SOURCE_VARIABLE));
    }

    #[test]
    fn every_text_survives_json() {
        let texts = [("a", "\"\\\n\t\0\u{1f}\u{7f}é\u{2028}🦀")];
        let read: BTreeMap<String, String> = serde_json::from_str(&json_of(&texts)).expect("JSON");
        assert_eq!(read["a"], texts[0].1);
        assert_eq!(json_of(&[]), "{}");
    }

    #[test]
    fn directories_come_before_those_of_the_environment() {
        let path = |paths: &[&str], told: Option<&str>| {
            let options = PythonOptions {
                modules: vec!["m".into()],
                paths: paths.iter().map(PathBuf::from).collect(),
                ..PythonOptions::default()
            };
            let program = PythonProgram::new(options).expect("a program");
            let mut command = program.command();
            if let Some(told) = told {
                command.env(PATH_VARIABLE, told);
            }
            program.extend_environment(&mut command, false);
            let mut variables = command.get_envs();
            let (_, value) = variables.find(|(name, _)| *name == PATH_VARIABLE)?;
            value.map(|value| value.to_string_lossy().into_owned())
        };
        assert_eq!(path(&["a", "b"], Some("c:d")).as_deref(), Some("a:b:c:d"));
        assert_eq!(path(&["a"], None).as_deref(), Some("a"));
        assert_eq!(path(&[], Some("c")).as_deref(), Some("c"));
        assert_eq!(path(&["a"], Some("")).as_deref(), Some("a"));
    }
}
