// What is on a board around the device: the very `top` that is synthesised, and the SPI flash on
// its pins. The serial line, the clock's pin and the LEDs are the bench's. Where the device clocks
// its flash through a primitive (ECP5), USRMCLK is defined: the clock is taken from inside.

module board (
    input  clk,
    input  rx,
    output tx,
    output alive,
    output busy,
    output error
);
    wire flash_cs_n, flash_clk, flash_copi, flash_cipo, flash_drives, flash_io0;
    assign flash_copi = flash_drives ? flash_io0 : 1'bz;

    top top (
        .clk(clk),
        .rx(rx),
        .tx(tx),
        .flash_cs_n(flash_cs_n),
`ifndef USRMCLK
        .flash_clk(flash_clk),
`endif
        .flash_copi(flash_copi),
        .flash_cipo(flash_cipo),
        .alive(alive),
        .busy(busy),
        .error(error)
    );

`ifdef USRMCLK
    assign flash_clk = top.usrmclk.MCLK;
`endif

    spi_flash flash (
        .cs_n(flash_cs_n),
        .clk(flash_clk),
        .copi(flash_copi),
        .cipo(flash_cipo),
        .drives(flash_drives),
        .io0(flash_io0)
    );
endmodule
