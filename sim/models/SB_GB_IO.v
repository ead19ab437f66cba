// Model of the iCE40 pin cell with a global buffer: an `SB_IO` whose pin is also a global net.

module SB_GB_IO (
    inout  PACKAGE_PIN,
    output GLOBAL_BUFFER_OUTPUT,
    input  LATCH_INPUT_VALUE = 1'b0,
    input  CLOCK_ENABLE = 1'b1,
    input  INPUT_CLK = 1'b0,
    input  OUTPUT_CLK = 1'b0,
    input  OUTPUT_ENABLE = 1'b0,
    input  D_OUT_0 = 1'b0,
    input  D_OUT_1 = 1'b0,
    output D_IN_0,
    output D_IN_1
);
    parameter [5:0] PIN_TYPE = 6'b000000;
    parameter [0:0] PULLUP = 1'b0;
    parameter [0:0] NEG_TRIGGER = 1'b0;
    parameter IO_STANDARD = "SB_LVCMOS";

    assign GLOBAL_BUFFER_OUTPUT = PACKAGE_PIN;

    SB_IO #(
        .PIN_TYPE(PIN_TYPE), .PULLUP(PULLUP), .NEG_TRIGGER(NEG_TRIGGER), .IO_STANDARD(IO_STANDARD)
    ) pin (
        .PACKAGE_PIN(PACKAGE_PIN), .LATCH_INPUT_VALUE(LATCH_INPUT_VALUE),
        .CLOCK_ENABLE(CLOCK_ENABLE), .INPUT_CLK(INPUT_CLK), .OUTPUT_CLK(OUTPUT_CLK),
        .OUTPUT_ENABLE(OUTPUT_ENABLE), .D_OUT_0(D_OUT_0), .D_OUT_1(D_OUT_1),
        .D_IN_0(D_IN_0), .D_IN_1(D_IN_1)
    );
endmodule
