//! What the targets check is what `tests/hostile` checks, and lives there; here it only runs for longer.

#[path = "../../tests/hostile/arenas.rs"]
pub mod arenas;
#[path = "../../tests/hostile/bytes.rs"]
pub mod bytes;
#[path = "../../tests/hostile/memory.rs"]
pub mod memory;
#[path = "../../tests/hostile/values.rs"]
pub mod values;

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;
