// Model of the iCE40 look-up table: bit {I3, I2, I1, I0} of LUT_INIT.

module SB_LUT4 (
    output O,
    input  I0 = 1'b0,
    input  I1 = 1'b0,
    input  I2 = 1'b0,
    input  I3 = 1'b0
);
    parameter [15:0] LUT_INIT = 16'h0000;
    assign O = LUT_INIT[{I3, I2, I1, I0}];
endmodule
