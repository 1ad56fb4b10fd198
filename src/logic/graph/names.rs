//! Names that many owners use, each held once: what is left of a name in a digest is its number.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Names by number, with how many use each. A name that nobody uses is forgotten, and its number given to another.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    numbers: BTreeMap<Arc<str>, u32>,
    slots: Vec<(Arc<str>, u32)>,
    free: Vec<u32>,
    bytes: usize,
}

impl Names {
    /// The number of a name, used once more.
    pub(super) fn take(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            self.slots[number as usize].1 += 1;
            return number;
        }
        let name: Arc<str> = name.into();
        self.bytes += name.len() + NAME_BYTES;
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = (name.clone(), 1);
                number
            }
            None => {
                self.slots.push((name.clone(), 1));
                self.slots.len() as u32 - 1
            }
        };
        self.numbers.insert(name, number);
        number
    }

    /// A name is used once less.
    pub(super) fn give_back(&mut self, number: u32) {
        let Some((name, uses)) = self.slots.get_mut(number as usize) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.bytes -= name.len() + NAME_BYTES;
            let name = std::mem::replace(name, Arc::from(""));
            self.numbers.remove(&name);
            self.free.push(number);
        }
    }

    /// The name with this number, which somebody uses.
    pub(super) fn name(&self, number: u32) -> &Arc<str> {
        &self.slots[number as usize].0
    }

    /// The number of a name, if anybody uses it.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// Memory in bytes, estimated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Beside its characters: counts of the `Arc`, the slot, and the place in a tree that is two thirds full.
const NAME_BYTES: usize = 16 + 24 + 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shared_and_come_back() {
        let mut names = Names::default();
        let (a, b) = (names.take("a"), names.take("b"));
        assert_eq!((names.take("a"), names.name(b).as_ref()), (a, "b"));
        names.give_back(a);
        assert_eq!(names.number("a"), Some(a));
        names.give_back(a);
        assert_eq!((names.number("a"), names.number("b")), (None, Some(b)));
        assert_eq!((names.take("c"), names.name(a).as_ref()), (a, "c"));
        names.give_back(a);
        names.give_back(b);
        assert_eq!((names.bytes(), names.number("b")), (0, None));
    }
}
