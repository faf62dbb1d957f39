//! What looking at a function tells against it.

#[errback::task]
fn generic<T: Clone>(value: T) -> T {
    value.clone()
}

#[errback::task]
fn with_a_lifetime<'a>(text: &'a str) -> usize {
    text.len()
}

#[errback::task]
async fn asynchronous() {}

#[errback::task]
unsafe fn with_a_contract() {}

#[errback::task]
extern "C" fn foreign() {}

#[errback::task]
fn taking_anything(value: impl ToString) -> String {
    value.to_string()
}

#[errback::task]
fn changing(numbers: &mut Vec<u8>) {
    numbers.clear();
}

#[errback::task]
fn borrowing_inside(text: Option<&str>) -> bool {
    text.is_some()
}

#[errback::task]
fn returning_a_loan(text: &str) -> &str {
    text
}

#[errback::task]
fn returning_a_loan_inside(text: &str) -> Result<Vec<&str>, String> {
    Ok(vec![text])
}

struct Account;

impl Account {
    #[errback::task]
    fn balance(&self) -> u64 {
        0
    }
}

#[errback::task]
struct NotAFunction;

#[errback::task(name = "")]
fn without_a_name() {}

#[errback::task(name = "errback.map")]
fn with_a_taken_name() {}

#[errback::task(priority = 5)]
fn with_an_unknown_option() {}

#[errback::task]
fn with_too_many(_: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8) {}

fn main() {}
