// Every small cell of sim/models once, for tests/sim/test_models.py.

module cells (
    input        clk,
    input        reference,
    input        pll_resetb,
    output       pad_clock, pad_lock, core_clock, core_lock, buffered, pin_clock,
    input        hf_enable,
    output       hf_clock,
    input        current, led_enable,
    input  [2:0] levels,
    output [2:0] rgb,
    input        out, enable, other, hold,
    input        pin_in,
    output       pin_simple, pin_registered, pin_inverted, pin_double,
    output       in_simple, in_registered, in_latched, in_both,
    input  [3:0] select,
    output       lut, flop
);
    SB_PLL40_PAD pad (
        .PACKAGEPIN(reference), .PLLOUTGLOBAL(pad_clock), .LOCK(pad_lock),
        .RESETB(pll_resetb), .BYPASS(1'b0)
    );
    SB_PLL40_CORE #(.DIVF(7'd3)) core (
        .REFERENCECLK(reference), .PLLOUTCORE(core_clock), .LOCK(core_lock),
        .RESETB(1'b1), .BYPASS(1'b0)
    );
    SB_GB gb (.USER_SIGNAL_TO_GLOBAL_BUFFER(reference), .GLOBAL_BUFFER_OUTPUT(buffered));
    wire clock_pin;
    assign clock_pin = reference;
    SB_GB_IO #(.PIN_TYPE(6'b000001)) gb_io (.PACKAGE_PIN(clock_pin), .GLOBAL_BUFFER_OUTPUT(pin_clock));
    SB_HFOSC #(.CLKHF_DIV("0b01")) hf (.CLKHFPU(1'b1), .CLKHFEN(hf_enable), .CLKHF(hf_clock));
    SB_RGBA_DRV driver (
        .CURREN(current), .RGBLEDEN(led_enable),
        .RGB0PWM(levels[0]), .RGB1PWM(levels[1]), .RGB2PWM(levels[2]),
        .RGB0(rgb[0]), .RGB1(rgb[1]), .RGB2(rgb[2])
    );

    wire w_simple, w_registered, w_inverted, w_double, w_in, w_both;
    SB_IO #(.PIN_TYPE(6'b011001)) o0 (.PACKAGE_PIN(w_simple), .D_OUT_0(out));
    SB_IO #(.PIN_TYPE(6'b010101)) o1 (.PACKAGE_PIN(w_registered), .D_OUT_0(out), .OUTPUT_CLK(clk));
    SB_IO #(.PIN_TYPE(6'b011101)) o2 (.PACKAGE_PIN(w_inverted), .D_OUT_0(out), .OUTPUT_CLK(clk));
    SB_IO #(.PIN_TYPE(6'b010001)) o3 (
        .PACKAGE_PIN(w_double), .D_OUT_0(out), .D_OUT_1(other), .OUTPUT_CLK(clk)
    );
    assign pin_double = w_double;
    assign pin_simple = w_simple;
    assign pin_registered = w_registered;
    assign pin_inverted = w_inverted;
    assign w_in = pin_in;
    SB_IO #(.PIN_TYPE(6'b000001)) i0 (.PACKAGE_PIN(w_in), .D_IN_0(in_simple));
    SB_IO #(.PIN_TYPE(6'b000000)) i1 (.PACKAGE_PIN(w_in), .D_IN_0(in_registered), .INPUT_CLK(clk));
    SB_IO #(.PIN_TYPE(6'b000011)) i2 (.PACKAGE_PIN(w_in), .D_IN_0(in_latched), .LATCH_INPUT_VALUE(hold));
    assign w_both = enable ? 1'bz : other;
    SB_IO #(.PIN_TYPE(6'b101001)) b0 (
        .PACKAGE_PIN(w_both), .OUTPUT_ENABLE(enable), .D_OUT_0(out), .D_IN_0(in_both)
    );

    SB_LUT4 #(.LUT_INIT(16'hB3A6)) table4 (
        .I0(select[0]), .I1(select[1]), .I2(select[2]), .I3(select[3]), .O(lut)
    );
    SB_DFF register (.C(clk), .D(select[0]), .Q(flop));
endmodule
