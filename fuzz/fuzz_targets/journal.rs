#![no_main]

wechsler_fuzz::program!("journal");
