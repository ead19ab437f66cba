// Model of the iCE40 UltraPlus oscillator. Time is made by the bench, so the bench drives
// `oscillator` at the divided frequency (48 MHz over 1, 2, 4 or 8); it reaches the output while
// the cell is powered up and enabled.

module SB_HFOSC (
    input  TRIM0 = 1'b0, TRIM1 = 1'b0, TRIM2 = 1'b0, TRIM3 = 1'b0, TRIM4 = 1'b0,
    input  TRIM5 = 1'b0, TRIM6 = 1'b0, TRIM7 = 1'b0, TRIM8 = 1'b0, TRIM9 = 1'b0,
    input  CLKHFPU,
    input  CLKHFEN,
    output CLKHF
);
    parameter TRIM_EN = "0b0";
    parameter CLKHF_DIV = "0b00";

    reg oscillator;
    initial oscillator = 1'b0;
    assign CLKHF = oscillator & CLKHFPU & CLKHFEN;
endmodule
