// Model of the ECP5's pad that only drives.

module OB (
    input  I,
    output O
);
    assign O = I;
endmodule
