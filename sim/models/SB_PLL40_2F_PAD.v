// Model of the iCE40 PLL with two outputs, one at half the other's frequency: the faster one is the
// clock at the pin, which a bench gives the frequency that the PLL would make; the dividers change
// nothing. Both outputs change in one step, as from one divider: where both rise, no flip-flop of
// either sees what another makes of that edge. Locked unless held in reset.

module SB_PLL40_2F_PAD (
    input        PACKAGEPIN,
    output       PLLOUTCOREA,
    output       PLLOUTGLOBALA,
    output       PLLOUTCOREB,
    output       PLLOUTGLOBALB,
    input        EXTFEEDBACK,
    input  [7:0] DYNAMICDELAY,
    output       LOCK,
    input        BYPASS,
    input        RESETB,
    input        LATCHINPUTVALUE,
    output       SDO,
    input        SDI,
    input        SCLK
);
    parameter FEEDBACK_PATH = "SIMPLE";
    parameter DELAY_ADJUSTMENT_MODE_FEEDBACK = "FIXED";
    parameter DELAY_ADJUSTMENT_MODE_RELATIVE = "FIXED";
    parameter SHIFTREG_DIV_MODE = 2'b00;
    parameter FDA_FEEDBACK = 4'b0000;
    parameter FDA_RELATIVE = 4'b0000;
    parameter PLLOUT_SELECT_PORTA = "GENCLK";
    parameter PLLOUT_SELECT_PORTB = "GENCLK";
    parameter DIVR = 4'b0000;
    parameter DIVF = 7'b0000000;
    parameter DIVQ = 3'b000;
    parameter FILTER_RANGE = 3'b000;
    parameter ENABLE_ICEGATE_PORTA = 1'b0;
    parameter ENABLE_ICEGATE_PORTB = 1'b0;
    parameter TEST_MODE = 1'b0;
    parameter EXTERNAL_DIVIDE_FACTOR = 1;

    reg whole = 1'b0, half = 1'b0;

    always @(PACKAGEPIN) begin
        if (PACKAGEPIN && !whole)
            half = ~half;
        whole = PACKAGEPIN;
    end

    wire a = PLLOUT_SELECT_PORTA == "GENCLK_HALF" ? half : whole;
    wire b = PLLOUT_SELECT_PORTB == "GENCLK_HALF" ? half : whole;

    assign PLLOUTCOREA = a;
    assign PLLOUTGLOBALA = a;
    assign PLLOUTCOREB = b;
    assign PLLOUTGLOBALB = b;
    assign LOCK = RESETB | BYPASS;
    assign SDO = 1'b0;
endmodule
