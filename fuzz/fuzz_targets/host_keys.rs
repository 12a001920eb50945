#![no_main]

wechsler_fuzz::program!("host_keys");
