//! Moves an amount from an account on one volume to an account on another one, maybe of another
//! target: nobody ever sees it on both or on neither, whatever crashes.
//!
//! ```text
//! cargo run --example transfer -- ONE.control VOLUME TWO.control VOLUME FROM_BALANCE TO_BALANCE
//! ```
//!
//! The volumes must be in one consistency group (`flipside group create`). Each volume's first eight
//! bytes are its balance. A program that knows no balances reads them as any client does.

use std::process::ExitCode;

use flipside::client::{ApplyError, Transaction};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, from_volume, to, to_volume, debit, credit] = arguments.as_slice() else {
        eprintln!("usage: transfer CONTROL VOLUME CONTROL VOLUME FROM_BALANCE TO_BALANCE");
        return ExitCode::from(2);
    };
    let (Ok(debit), Ok(credit)) = (debit.parse::<u64>(), credit.parse::<u64>()) else {
        eprintln!("transfer: balances are numbers");
        return ExitCode::from(2);
    };
    let mut transfer = Transaction::new();
    transfer.write(from, from_volume, 0, debit.to_le_bytes());
    transfer.write(to, to_volume, 0, credit.to_le_bytes());
    loop {
        match transfer.apply() {
            Ok(transaction) => {
                println!("transferred in transaction {transaction}");
                return ExitCode::SUCCESS;
            }
            // All of it took place or nothing; the balances are absolute, so once more is the same.
            Err(error @ ApplyError::OutcomeUnknown { .. }) => eprintln!("transfer: {error}"),
            Err(error) => {
                eprintln!("transfer: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}
