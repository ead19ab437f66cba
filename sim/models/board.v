// What is on a board around the device: the very `top` that is synthesised, and the SPI flash on
// its pins, where it has any for one (FLASH). The serial line, the clock's pin and the LEDs are the
// bench's. Where the device clocks its flash through a primitive (ECP5), USRMCLK is defined: the clock
// is taken from inside. Where the flash answers on four lines, QUAD is; else the board's pull-ups hold
// the further two. Where there are pins of an SDRAM, SDRAM is.
//
// Where USRMCLK is defined the clock is so fast that the ways through pads and wires matter. Simulation
// knows no delays: what the flash sends comes a cycle later there, which with its own 6 ns stands for
// ways of as long a time as `boards.records` allows for. What the SDRAM sends comes half a cycle after
// the edge of its clock that calls for it, and stays for a cycle.

module board (
    input  clk,
    input  rx,
    output tx,
    output ready,
    output busy,
    output error
);
`ifdef FLASH
    wire flash_cs_n, flash_clk, flash_copi, flash_cipo, flash_io2, flash_io3;
    wire [5:0] sends;
    wire sent_cipo, drives, sent_io0, quad_drives, sent_io2, sent_io3;
`ifdef USRMCLK
    reg [5:0] sent = 0;
    always @(posedge clk) sent <= sends;
`else
    wire [5:0] sent = sends;
`endif
    assign {sent_cipo, drives, sent_io0, quad_drives, sent_io2, sent_io3} = sent;
    assign flash_cipo = sent_cipo;
    assign flash_copi = drives ? sent_io0 : 1'bz;
`ifdef QUAD
    assign flash_io2 = quad_drives ? sent_io2 : 1'bz;
    assign flash_io3 = quad_drives ? sent_io3 : 1'bz;
`else
    assign flash_io2 = 1;
    assign flash_io3 = 1;
`endif
`endif

`ifdef SDRAM
    wire sdram_clk, sdram_cke, sdram_cs_n, sdram_ras_n, sdram_cas_n, sdram_we_n, sdram_drives;
    wire [1:0] sdram_dqm, sdram_ba;
    wire [12:0] sdram_a;
    wire [15:0] sdram_dq, sdram_sends;
    reg [16:0] sdram_sent = 0;
    always @(posedge clk) sdram_sent <= {sdram_drives, sdram_sends};
    assign sdram_dq = sdram_sent[16] ? sdram_sent[15:0] : 16'bz;
`endif

    top top (
        .clk(clk),
        .rx(rx),
        .tx(tx),
`ifdef FLASH
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
`endif
`ifdef SDRAM
        .sdram_clk(sdram_clk),
        .sdram_cke(sdram_cke),
        .sdram_cs_n(sdram_cs_n),
        .sdram_ras_n(sdram_ras_n),
        .sdram_cas_n(sdram_cas_n),
        .sdram_we_n(sdram_we_n),
        .sdram_dqm0(sdram_dqm[0]),
        .sdram_dqm1(sdram_dqm[1]),
        .sdram_ba0(sdram_ba[0]),
        .sdram_ba1(sdram_ba[1]),
        .sdram_a0(sdram_a[0]),
        .sdram_a1(sdram_a[1]),
        .sdram_a2(sdram_a[2]),
        .sdram_a3(sdram_a[3]),
        .sdram_a4(sdram_a[4]),
        .sdram_a5(sdram_a[5]),
        .sdram_a6(sdram_a[6]),
        .sdram_a7(sdram_a[7]),
        .sdram_a8(sdram_a[8]),
        .sdram_a9(sdram_a[9]),
        .sdram_a10(sdram_a[10]),
        .sdram_a11(sdram_a[11]),
        .sdram_a12(sdram_a[12]),
        .sdram_dq0(sdram_dq[0]),
        .sdram_dq1(sdram_dq[1]),
        .sdram_dq2(sdram_dq[2]),
        .sdram_dq3(sdram_dq[3]),
        .sdram_dq4(sdram_dq[4]),
        .sdram_dq5(sdram_dq[5]),
        .sdram_dq6(sdram_dq[6]),
        .sdram_dq7(sdram_dq[7]),
        .sdram_dq8(sdram_dq[8]),
        .sdram_dq9(sdram_dq[9]),
        .sdram_dq10(sdram_dq[10]),
        .sdram_dq11(sdram_dq[11]),
        .sdram_dq12(sdram_dq[12]),
        .sdram_dq13(sdram_dq[13]),
        .sdram_dq14(sdram_dq[14]),
        .sdram_dq15(sdram_dq[15]),
`endif
        .ready(ready),
        .busy(busy),
        .error(error)
    );

`ifdef USRMCLK
    assign flash_clk = top.usrmclk.MCLK;
`endif

`ifdef FLASH
    spi_flash flash (
        .cs_n(flash_cs_n),
        .clk(flash_clk),
        .copi(flash_copi),
        .cipo(sends[5]),
        .drives(sends[4]),
        .io0(sends[3]),
        .wp_n(flash_io2),
        .hold_n(flash_io3),
        .quad_drives(sends[2]),
        .io2(sends[1]),
        .io3(sends[0])
    );
`endif

`ifdef SDRAM
    sdr_sdram memory (
        .clk(sdram_clk),
        .cke(sdram_cke),
        .cs_n(sdram_cs_n),
        .ras_n(sdram_ras_n),
        .cas_n(sdram_cas_n),
        .we_n(sdram_we_n),
        .ba(sdram_ba),
        .a(sdram_a),
        .dqm(sdram_dqm),
        .dq(sdram_dq),
        .dq_o(sdram_sends),
        .drives(sdram_drives)
    );
`endif
endmodule
