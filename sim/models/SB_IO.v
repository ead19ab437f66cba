// Model of the iCE40 pin cell: simple, registered, inverted and double data rate output, simple,
// registered and latched input, with or without output enable.
// Source of the behaviour: Lattice iCE40 technology library, SB_IO.
//
// PIN_TYPE[1:0]  00 registered input, 01 simple, 10 registered and latched, 11 latched
// PIN_TYPE[3:2]  00 double data rate, 01 registered output, 10 simple, 11 registered and inverted
// PIN_TYPE[5:4]  00 no output, 01 always, 10 by OUTPUT_ENABLE, 11 by registered OUTPUT_ENABLE

module SB_IO (
    inout  PACKAGE_PIN,
    input  LATCH_INPUT_VALUE = 1'b0,
    input  CLOCK_ENABLE = 1'b1,       // high where it is not connected
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

    wire in_clk = INPUT_CLK ^ NEG_TRIGGER;
    wire out_clk = OUTPUT_CLK ^ NEG_TRIGGER;

    reg in_rising, in_falling, out_q, enable_q, out_double;

    always @(posedge in_clk) if (CLOCK_ENABLE) in_rising <= PACKAGE_PIN;
    always @(negedge in_clk) if (CLOCK_ENABLE) in_falling <= PACKAGE_PIN;
    always @(posedge out_clk) if (CLOCK_ENABLE) begin
        out_q <= D_OUT_0;
        enable_q <= OUTPUT_ENABLE;
    end
    // One register for both halves of a cycle: a choice between two would glitch in simulation.
    always @(posedge out_clk or negedge out_clk)
        if (CLOCK_ENABLE) out_double <= out_clk ? D_OUT_0 : D_OUT_1;

    wire in_now = PIN_TYPE[0] ? PACKAGE_PIN : in_rising;
    assign D_IN_1 = in_falling;
    generate
        if (PIN_TYPE[1]) begin : latched
            reg held;
            always_latch if (!LATCH_INPUT_VALUE) held = in_now;
            assign D_IN_0 = held;
        end else begin : direct
            assign D_IN_0 = in_now;
        end

        if (PIN_TYPE[5:4] != 2'b00) begin : output_side
            wire out = PIN_TYPE[3:2] == 2'b10 ? D_OUT_0 : PIN_TYPE[3:2] == 2'b00 ? out_double :
                PIN_TYPE[2] & PIN_TYPE[3] ? ~out_q : out_q;
            if (PIN_TYPE[5:4] == 2'b01) begin : always_on
                assign PACKAGE_PIN = out;
            end else begin : tristate
                wire enable = PIN_TYPE[4] ? enable_q : OUTPUT_ENABLE;
                assign PACKAGE_PIN = enable ? out : 1'bz;
            end
        end
    endgenerate
endmodule
