// Model of the iCE40 flip-flop without reset or enable.

module SB_DFF (
    output reg Q,
    input      C,
    input      D
);
    initial Q = 1'b0;
    always @(posedge C) Q <= D;
endmodule
