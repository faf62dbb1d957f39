//! The program on the front pages is the one that can be run.

#[test]
fn the_readme_and_the_documentation_show_the_hello_example() {
    let hello = include_str!("../examples/hello.rs");
    let program = &hello[hello.find("use errback").unwrap()..];
    assert!(include_str!("../README.md").contains(program), "README.md");
    let documentation: String = include_str!("../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert!(documentation.contains(program), "src/lib.rs");
}
