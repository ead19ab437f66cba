// What is on a board around the device: the very `top` that is synthesised, and the SPI flash on
// its pins. The serial line, the clock's pin and the LEDs are the bench's. Where the device clocks
// its flash through a primitive (ECP5), USRMCLK is defined: the clock is taken from inside. Where the
// flash answers on four lines, QUAD is; else the board's pull-ups hold the further two.

module board (
    input  clk,
    input  rx,
    output tx,
    output ready,
    output busy,
    output error
);
    wire flash_cs_n, flash_clk, flash_copi, flash_cipo, flash_io2, flash_io3;
    wire drives, quad_drives, sent_io0, sent_io2, sent_io3;
    assign flash_copi = drives ? sent_io0 : 1'bz;
`ifdef QUAD
    assign flash_io2 = quad_drives ? sent_io2 : 1'bz;
    assign flash_io3 = quad_drives ? sent_io3 : 1'bz;
`else
    assign flash_io2 = 1;
    assign flash_io3 = 1;
`endif

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
`ifdef QUAD
        .flash_io2(flash_io2),
        .flash_io3(flash_io3),
`endif
        .ready(ready),
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
        .drives(drives),
        .io0(sent_io0),
        .wp_n(flash_io2),
        .hold_n(flash_io3),
        .quad_drives(quad_drives),
        .io2(sent_io2),
        .io3(sent_io3)
    );
endmodule
