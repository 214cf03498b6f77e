//! Control: reads the roster, asks the database whether it lives, and says how things stand. It never
//! sees a row; what it knows of the data roads is what they wrote on the board.

pub mod health;
pub mod history;
pub mod probe;
pub mod status;
